package org.seedtune.demo

/** Step and value. */
typealias Points = List<Pair<Double, Double>>

/** Where the points of a chart stand. */
class Curve(private val points: Points, through: Points = points) {
    private val right = maxOf(1.0, through.maxOfOrNull { it.first } ?: 1.0)
    val low = through.minOfOrNull { it.second } ?: 0.0
    val high = through.maxOfOrNull { it.second } ?: 1.0

    /** x and y of each point, one after another, inside a frame of [margin] pixels. */
    fun pixels(width: Int, height: Int, margin: Float): FloatArray {
        val across = width - 2 * margin
        val down = height - 2 * margin
        val range = if (high > low) high - low else 1.0
        return FloatArray(2 * points.size) { place ->
            val (x, y) = points[place / 2]
            margin + (if (place % 2 == 0) across * x / right else down * (high - y) / range).toFloat()
        }
    }
}
