// What an older fbjni asks to load its library, then of another name.
package com.facebook.soloader

object SoLoader {
    @JvmStatic
    fun loadLibrary(name: String): Boolean {
        System.loadLibrary(if (name == "fb") "fbjni" else name)
        return true
    }
}
