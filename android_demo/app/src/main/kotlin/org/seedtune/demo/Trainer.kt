package org.seedtune.demo

import java.util.concurrent.CopyOnWriteArraySet

/** What the notification and the screens show of learning. */
data class Report(
    val text: String,
    val step: Int = 0,
    val steps: Int = 0,
    /** A session goes on, perhaps resting. */
    val active: Boolean = true,
    val resting: Boolean = false,
)

/** One session of learning at a time, on a thread of its own. No Android in here. */
class Trainer(private val brain: Brain) : Listener {
    fun interface Watcher {
        /** Called from any thread. */
        fun show(report: Report)
    }

    private val watchers = CopyOnWriteArraySet<Watcher>()
    private var worker: Thread? = null

    @Volatile
    var report = Report("", active = false)
        private set

    fun watch(watcher: Watcher) {
        watchers.add(watcher)
        watcher.show(report)
    }

    fun forget(watcher: Watcher) {
        watchers.remove(watcher)
    }

    /** Begin, or go on with, learning of a kind; an empty [kind]: with what a kill interrupted. */
    @Synchronized
    fun start(kind: String, share: Double): Boolean {
        if (worker != null) return false
        tell(Report("Getting ready"))
        worker = Thread({ learn(kind, share) }, "learning").apply { start() }
        return true
    }

    private fun learn(kind: String, share: Double) {
        val answer = try {
            brain.call("learn", kind, share, this)
        } catch (error: Throwable) { // else the app ends, is started again, and ends again
            "{\"error\": \"the bridge to Python failed: $error\"}"
        }
        synchronized(this) { worker = null }
        tell(report.copy(text = plain(answer), active = false, resting = false))
    }

    /** Rest after the step under way. */
    fun pause() {
        brain.call("pause", "paused", "user")
    }

    fun resume() {
        brain.call("pause", null, "user")
    }

    /** Rest while there is a [reason] in the phone's state; go on when there is none. */
    fun heed(reason: String?) {
        brain.call("pause", reason, "phone")
    }

    fun stop() {
        brain.call("stop")
    }

    /** Wait for the session's end; whether it came. */
    fun join(milliseconds: Long): Boolean {
        val thread = synchronized(this) { worker } ?: return true
        thread.join(milliseconds)
        return !thread.isAlive
    }

    override fun stepped(step: Int, steps: Int, loss: Double) {
        tell(Report("Step $step of $steps", step, steps))
    }

    override fun evaluating(done: Int, total: Int) {
        tell(report.copy(text = "Judging $done of $total held-out examples", resting = false))
    }

    override fun waiting(reason: String) {
        val text = if (reason.isEmpty()) "Going on" else "Resting: $reason"
        tell(report.copy(text = text, resting = reason.isNotEmpty()))
    }

    private fun tell(next: Report) {
        report = next
        watchers.forEach { it.show(next) }
    }

    companion object {
        /** The line in an answer of [Brain]: `{"ok": "line"}` or `{"error": "line"}`. */
        @JvmStatic
        fun plain(answer: String): String =
            answer.substringAfter(": \"", answer).removeSuffix("\"}").replace(ESCAPE) {
                val (one, code) = it.destructured
                if (code.isEmpty()) one else code.toInt(16).toChar().toString()
            }

        private val ESCAPE = Regex("""\\(u([0-9a-f]{4})|.)""")
    }
}
