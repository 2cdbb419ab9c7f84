package org.seedtune.demo

import android.content.Context
import android.graphics.Canvas
import android.graphics.Paint
import android.util.AttributeSet
import android.view.View

/** Losses of the steps, faint, and the held-out evaluations, whose line grows. */
class ChartView(context: Context, attributes: AttributeSet?) : View(context, attributes) {
    private val dense = context.resources?.displayMetrics?.density ?: 1f
    private val faint = Paint(Paint.ANTI_ALIAS_FLAG).apply { color = 0x66888888; strokeWidth = dense }
    private val strong = Paint(Paint.ANTI_ALIAS_FLAG).apply {
        color = context.getColor(R.color.accent)
        strokeWidth = 3 * dense
        textSize = 12 * dense
    }
    private var losses: Points = emptyList()
    private var judged: Points = emptyList()
    private var unit: (Double) -> String = { "%.1f".format(it) }

    fun show(losses: Points, judged: Points, unit: (Double) -> String) {
        this.losses = losses
        this.judged = judged
        this.unit = unit
        val said = judged.joinToString { (step, value) -> "${step.toInt()}: ${unit(value)}" }
        contentDescription = context.getString(R.string.chart, said)
        invalidate()
    }

    override fun onDraw(canvas: Canvas) {
        if (judged.isEmpty()) return
        val margin = 20 * dense
        line(canvas, Curve(losses).pixels(width, height, margin), faint)
        // The axis of steps is that of both.
        val last = losses.lastOrNull()?.first ?: 0.0
        val curve = Curve(judged, judged + (last to judged.last().second))
        val pixels = curve.pixels(width, height, margin)
        line(canvas, pixels, strong)
        for (place in pixels.indices step 2) canvas.drawCircle(pixels[place], pixels[place + 1], 4 * dense, strong)
        canvas.drawText(unit(curve.high), dense, margin - 4 * dense, strong)
        canvas.drawText(unit(curve.low), dense, height - 4 * dense, strong)
    }

    /** From each point to the next: lines from every other point, from the first on and from the second. */
    private fun line(canvas: Canvas, pixels: FloatArray, paint: Paint) {
        for (from in listOf(0, 2)) canvas.drawLines(pixels, from, maxOf(0, pixels.size - from), paint)
    }
}
