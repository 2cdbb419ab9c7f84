package com.chaquo.python;

public class Python {
    public interface Platform {}

    public static boolean isStarted() { throw null; }

    public static void start(Platform platform) { throw null; }

    public static Python getInstance() { throw null; }

    public PyObject getModule(String name) { throw null; }
}
