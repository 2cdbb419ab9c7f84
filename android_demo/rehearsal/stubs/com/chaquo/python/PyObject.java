package com.chaquo.python;

public class PyObject {
    public PyObject callAttr(String name, Object... arguments) { throw null; }
}
