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

    /** A session that is not ready yet does not hear of it: it is told again with what it says. */
    @Volatile
    private var stopping = false

    @Volatile
    var report = Report("", active = false)
        private set

    @Synchronized
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
        stopping = false
        tell(Report("Getting ready"))
        worker = Thread({ learn(kind, share) }, "learning").apply { start() }
        return true
    }

    private fun learn(kind: String, share: Double) {
        val answer = try {
            brain.call("learn", kind, share, this)
        } catch (error: Throwable) { // else the app ends, is started again, and ends again
            "the bridge to Python failed: ${"$error".lineSequence().first()}"
        }
        synchronized(this) { // else a session that is started meanwhile would pass for ended
            worker = null
            tell(report.copy(text = answer, active = false, resting = false))
        }
    }

    /** Rest after the step under way. */
    fun pause() = rest("paused", "user")

    fun resume() = rest(null, "user")

    /** Rest while there is a [reason] in the phone's state; go on when there is none. */
    fun heed(reason: String?) = rest(reason, "phone")

    private fun rest(reason: String?, whose: String) {
        brain.call("pause", reason, whose)
    }

    fun stop() {
        stopping = true
        brain.call("stop")
    }

    /** Wait for the session's end; whether it came. */
    fun join(milliseconds: Long): Boolean {
        val thread = synchronized(this) { worker } ?: return true
        thread.join(milliseconds)
        return !thread.isAlive
    }

    @Synchronized
    override fun stepped(step: Int, steps: Int, loss: Double) {
        tell(Report("Step $step of $steps", step, steps))
    }

    @Synchronized
    override fun evaluating(done: Int, total: Int) {
        tell(report.copy(text = "Judging $done of $total held-out examples", resting = false))
    }

    @Synchronized
    override fun waiting(reason: String) {
        val text = if (reason.isEmpty()) "Going on" else "Resting: $reason"
        tell(report.copy(text = text, resting = reason.isNotEmpty()))
    }

    private fun tell(next: Report) {
        report = next
        watchers.forEach { it.show(next) }
        if (stopping && next.active) brain.call("stop")
    }
}
