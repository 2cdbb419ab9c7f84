package com.chaquo.python.android;

public class AndroidPlatform implements com.chaquo.python.Python.Platform {
    public AndroidPlatform(android.content.Context context) {}
}
