package org.seedtune.demo

/** What matters of the phone. [thermal] is the system's 0 (cool) to 6; null where it has none. */
data class PhoneState(
    val charging: Boolean,
    val thermal: Int?,
    val batteryTenths: Int,
    val saving: Boolean,
)

data class Wishes(val onlyCharging: Boolean, val onlyCool: Boolean)

/** Whether to rest, and why. Remembers heat, so as not to go on at the first tenth below. */
class Conditions {
    private var hot = false

    fun reason(state: PhoneState, wishes: Wishes): String? {
        hot = when {
            state.thermal == null -> state.batteryTenths >= if (hot) WARM else HOT
            else -> state.thermal >= if (hot) LIGHT else MODERATE
        }
        return when {
            wishes.onlyCool && hot -> "the phone is warm"
            wishes.onlyCharging && !state.charging -> "the phone is not charging"
            wishes.onlyCharging && state.saving -> "battery saver is on"
            else -> null
        }
    }

    private companion object {
        const val LIGHT = 1
        const val MODERATE = 2

        // Tenths of a degree Celsius of the battery.
        const val HOT = 410
        const val WARM = 380
    }
}
