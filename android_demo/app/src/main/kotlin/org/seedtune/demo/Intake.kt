package org.seedtune.demo

import java.io.File
import java.io.FileOutputStream
import java.io.IOException
import java.io.InputStream

/** A file could not be taken in; the message is for the user. */
class IntakeFailed(message: String, cause: Throwable? = null) : Exception(message, cause)

/** Copies what the user picked into the app's own folder, whole or not at all. */
class Intake(private val folder: File, private val free: (File) -> Long = { it.usableSpace }) {
    private val picked = File(folder, "picked.seedtune")
    private val part = File(folder, "picked.seedtune.part")

    /** A bundle that was picked and not used yet; what a process left that was killed in copying is gone. */
    fun waiting(): File? {
        part.delete()
        return picked.takeIf { it.exists() }
    }

    /**
     * Copy all of [open]'s stream; one at a time.
     *
     * @param size bytes to come, 0 or less if nobody knows.
     * @param told bytes copied so far, and of how many.
     * @throws IntakeFailed the source cannot be read any more, or the storage is full; what was
     *   there before is untouched, and nothing half remains.
     */
    fun take(size: () -> Long, told: (Long, Long) -> Unit, open: () -> InputStream?): File {
        folder.mkdirs()
        var coming = -1L
        try {
            return from({ coming = fitting(size()); open() }) { source ->
                FileOutputStream(part).use { copy(source, it, coming, told) }
                if (!part.renameTo(picked)) throw IOException("cannot be renamed")
                picked
            }
        } finally {
            part.delete()
        }
    }

    /** The [size], if there is room for the archive and what is unpacked from it. */
    private fun fitting(size: Long): Long {
        val lacking = 2 * size + SPARE - free(folder)
        if (size > 0 && lacking > 0) {
            throw IntakeFailed("the phone's storage is too full: free ${(lacking + 999_999) / 1_000_000} MB")
        }
        return size
    }

    /** The first [most] characters of [open]'s text. */
    fun text(most: Int, open: () -> InputStream?): String = from(open) { source ->
        val reader = source.reader()
        val found = CharArray(most)
        var size = 0
        while (size < most) size += reader.read(found, size, most - size).takeIf { it >= 0 } ?: break
        String(found, 0, size)
    }

    private fun <T> from(open: () -> InputStream?, read: (InputStream) -> T): T = try {
        (open() ?: throw IOException("nothing there")).use(read)
    } catch (error: SecurityException) {
        throw IntakeFailed("the file may not be read any more: choose it again", error)
    } catch (error: IOException) {
        val full = free(folder) < SPARE || error.message.orEmpty().contains("ENOSPC")
        val why = if (full) "the phone's storage is full: free some" else "the file cannot be read"
        throw IntakeFailed("$why (${error.message.orEmpty().lineSequence().first()})", error)
    }

    private fun copy(from: InputStream, to: FileOutputStream, size: Long, told: (Long, Long) -> Unit) {
        val buffer = ByteArray(1 shl 16)
        var copied = 0L
        var next = TELL_EVERY
        while (true) {
            val count = from.read(buffer)
            if (count < 0) break
            to.write(buffer, 0, count)
            copied += count
            if (copied >= next) {
                told(copied, size)
                next = copied + TELL_EVERY
            }
        }
        if (size > 0 && copied != size) throw IOException("ended after $copied of $size bytes")
        to.fd.sync()
        told(copied, size)
    }

    private companion object {
        const val SPARE = 50_000_000L
        const val TELL_EVERY = 1L shl 22
    }
}
