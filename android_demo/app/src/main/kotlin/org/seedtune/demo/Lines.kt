package org.seedtune.demo

/** Shows one line; called from any thread. */
interface Screen {
    fun say(line: String)
}

/** Lines for the user: to the screen in front, whichever asked for the work, or to the next that comes. */
class Lines {
    private var front: Screen? = null
    private var unread: String? = null

    @Synchronized
    fun say(line: String) {
        unread = line.takeIf { front == null }
        front?.say(line)
    }

    @Synchronized
    fun come(screen: Screen) {
        front = screen
        unread?.let(::say)
    }

    @Synchronized
    fun leave(screen: Screen) {
        if (front === screen) front = null // else the next is there already
    }
}
