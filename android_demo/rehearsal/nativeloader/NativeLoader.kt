// The three classes of Facebook's nativeloader that ExecuTorch's classes call, without its choices.
package com.facebook.soloader.nativeloader

interface NativeLoaderDelegate {
    fun loadLibrary(name: String, flags: Int): Boolean
}

class SystemDelegate : NativeLoaderDelegate {
    override fun loadLibrary(name: String, flags: Int): Boolean {
        System.loadLibrary(name)
        return true
    }
}

object NativeLoader {
    private var delegate: NativeLoaderDelegate? = null

    @JvmStatic
    fun isInitialized(): Boolean = delegate != null

    @JvmStatic
    fun init(given: NativeLoaderDelegate) {
        delegate = given
    }

    @JvmStatic
    fun loadLibrary(name: String): Boolean = delegate!!.loadLibrary(name, 0)
}
