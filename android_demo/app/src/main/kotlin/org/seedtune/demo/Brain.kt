package org.seedtune.demo

/** The Python half of the app: `seedtune_app.app.App`. Answers are JSON, but those of `learn`; see there. */
interface Brain {
    fun call(name: String, vararg arguments: Any?): String
}

/** Hears how many bytes of a bundle are checked. */
fun interface Checking {
    fun checked(done: Long, total: Long)
}

/** What a session of learning tells; called by Python from the session's thread. */
interface Listener {
    fun stepped(step: Int, steps: Int, loss: Double)

    fun evaluating(done: Int, total: Int)

    fun waiting(reason: String)
}
