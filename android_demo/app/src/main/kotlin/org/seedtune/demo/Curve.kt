package org.seedtune.demo

/** Where the points of a chart stand. */
class Curve(private val points: List<Pair<Double, Double>>, through: List<Pair<Double, Double>> = points) {
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
            if (place % 2 == 0) {
                margin + (across * x / right).toFloat()
            } else {
                margin + (down * (high - y) / range).toFloat()
            }
        }
    }
}
