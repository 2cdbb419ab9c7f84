// Streams of picked files that fail as a phone's do.
package org.seedtune.rehearsal

import java.io.InputStream

/** Gives [good] bytes, then the permission is gone. */
class RevokedStream(private var good: Int) : InputStream() {
    override fun read(): Int {
        if (good-- <= 0) throw SecurityException("Permission Denial: opening provider")
        return 0
    }
}
