package org.seedtune.demo

import android.Manifest
import android.content.Context
import android.content.Intent
import android.net.Uri
import android.os.Build
import android.os.Bundle
import android.view.View
import android.widget.Button
import android.widget.CheckBox
import android.widget.LinearLayout
import android.widget.SeekBar
import org.json.JSONArray
import org.json.JSONObject

/** One task: what to learn from, learning, what came of it, and the way back. */
class TaskActivity : Page(), Trainer.Watcher {
    private val kind by lazy { intent.getStringExtra(KIND)!! }
    private val sorting get() = kind == "sort"
    private var shownStep = -1
    private var tapped: Int? = null

    override fun onCreate(saved: Bundle?) {
        super.onCreate(saved)
        tapped = saved?.getInt(TAPPED, -1)?.takeIf { it >= 0 }
        setContentView(R.layout.task)
        setTitle(if (sorting) R.string.sort else R.string.write)
        text(R.id.hint).setText(if (sorting) R.string.sort_hint else R.string.write_hint)
        for (id in listOf(R.id.kinds, R.id.name_kinds, R.id.message, R.id.labels)) {
            findViewById<View>(id).visibility = if (sorting) View.VISIBLE else View.GONE
        }
        for (id in listOf(R.id.remembered, R.id.forgotten, R.id.forget, R.id.forget_all)) {
            findViewById<View>(id).visibility = if (sorting) View.GONE else View.VISIBLE
        }
        on(R.id.forget) { ask("forget", field(R.id.forgotten)) { refresh() } }
        on(R.id.forget_all) { ask("forget", null) { refresh() } }
        on(R.id.name_kinds) { ask("name_labels", field(R.id.kinds)) { refresh() } }
        on(R.id.add) { field(R.id.given).let { give { it } } }
        on(R.id.from_file) { choose("text/*") }
        on(R.id.learn) {
            TuneService.tell(this, TuneService.LEARN, kind)
            // Asked once there is something to notify of; it learns without, too.
            if (Build.VERSION.SDK_INT >= 33) requestPermissions(arrayOf(Manifest.permission.POST_NOTIFICATIONS), 0)
        }
        on(R.id.pause) { TuneService.tell(this, TuneService.PAUSE) }
        on(R.id.resume) { TuneService.tell(this, TuneService.RESUME) }
        on(R.id.stop) { TuneService.tell(this, TuneService.STOP) }
        on(R.id.undo) { ask("undo", kind, findViewById<SeekBar>(R.id.step).progress) { refresh() } }
        on(R.id.try_it) { ask("predict", kind, field(R.id.tried)) { showAnswer(it as JSONObject) } }
        wish(R.id.charging, Wish.CHARGING, Wish.of(this).onlyCharging)
        wish(R.id.cool, Wish.COOL, Wish.of(this).onlyCool)
        slide(R.id.share, Wish.share(this)) {
            Wish.setShare(this, it.coerceAtLeast(5))
            text(R.id.share_text).text = getString(R.string.share, it.coerceAtLeast(5))
        }
        slide(R.id.step, 0) { findViewById<Button>(R.id.undo).text = getString(R.string.undo, it) }
    }

    override fun onSaveInstanceState(state: Bundle) {
        super.onSaveInstanceState(state)
        tapped?.let { state.putInt(TAPPED, it) }
    }

    override fun onStart() {
        super.onStart()
        // In the queue's order, so that a screen that is gone at once is forgotten after it watched.
        Seedtune.ask(this, { Seedtune.trainer(this).watch(this) }) {}
        refresh()
    }

    override fun onStop() {
        super.onStop()
        Seedtune.ask(this, { Seedtune.trainer(this).forget(this) }) {}
    }

    override fun show(report: Report) = runOnUiThread {
        if (report.text.isNotEmpty()) say(report.text)
        for (id in listOf(R.id.learn, R.id.undo, R.id.share)) findViewById<View>(id).isEnabled = !report.active
        for (id in listOf(R.id.pause, R.id.resume, R.id.stop)) findViewById<View>(id).isEnabled = report.active
        if (report.step != shownStep || !report.active) {
            shownStep = report.step
            ask("progress", kind) { showProgress(it as? JSONObject) }
            if (!report.active && !sorting) ask("remembered") { showRemembered(it as JSONArray) }
        }
    }

    private fun refresh() {
        ask("progress", kind) { showProgress(it as? JSONObject) }
        if (sorting) ask("messages") { showMessages(it as JSONObject) }
        else ask("remembered") { showRemembered(it as JSONArray) }
    }

    override fun chosen(uri: Uri) = give { Intake(cacheDir).text(LONGEST) { contentResolver.openInputStream(uri) } }

    private fun give(given: () -> String) = Seedtune.ask(this, { brain ->
        given().let { it to brain.ok(if (sorting) "add_messages" else "write", it) as Int }
    }) { (taken, count) ->
        if (field(R.id.given) == taken) text(R.id.given).text = "" // nothing else that stands there
        say(getString(if (sorting) R.string.messages_added else R.string.pieces, count))
        refresh()
    }

    /** The first message without a kind, and a button a kind. */
    private fun showMessages(found: JSONObject) {
        val messages = found.getJSONArray("messages")
        val labels = found.getJSONArray("labels")
        val next = (0 until messages.length()).firstOrNull { messages.getJSONObject(it).isNull("label") }
        text(R.id.message).text = when {
            messages.length() == 0 -> getString(R.string.no_messages)
            next == null -> getString(R.string.all_sorted, messages.length())
            else -> messages.getJSONObject(next).getString("text")
        }
        val row = findViewById<LinearLayout>(R.id.labels)
        row.removeAllViews()
        fun button(title: String, place: Int, label: String?) {
            val button = Button(this)
            button.text = title
            button.setOnClickListener { ask("tap", place, label) { tapped = place.takeIf { label != null }; refresh() } }
            row.addView(button)
        }
        for (label in (0 until labels.length()).map(labels::getString)) if (next != null) button(label, next, label)
        tapped?.let { button(getString(R.string.take_back), it, null) }
    }

    /** How many words it remembers, and the newest texts. */
    private fun showRemembered(found: JSONArray) {
        val texts = (0 until found.length()).map(found::getJSONObject)
        val newest = texts.take(SHOWN).map { "• " + it.getString("text").trim() }
        val count = getString(R.string.remembered, texts.sumOf { it.getInt("words") }, texts.size)
        text(R.id.remembered).text = (listOf(count) + newest).joinToString("\n\n")
    }

    private fun showProgress(found: JSONObject?) {
        val judged = pairs(found, "evaluations")
        findViewById<SeekBar>(R.id.step).max = found?.getInt("steps") ?: 0
        findViewById<ChartView>(R.id.chart).show(pairs(found, "losses"), judged, ::shown)
        val before = judged.firstOrNull()
        if (found == null || before == null) return text(R.id.before_after).setText(R.string.nothing_yet)
        val after = judged.firstOrNull { it.first == found.getInt("best").toDouble() } ?: before
        val what = if (sorting) R.string.before_after_sort else R.string.before_after_write
        val stale = if (found.getBoolean("fresh")) "" else "\n" + getString(R.string.stale)
        text(R.id.before_after).text = getString(what, shown(before.second), shown(after.second), after.first.toInt()) + stale
    }

    private fun shown(value: Double) = if (sorting) "%.0f %%".format(100 * value) else "%.1f".format(value)

    private fun showAnswer(found: JSONObject) {
        val (before, after) = listOf("before", "after").map { found.getJSONObject(it) }
        text(R.id.answer).text = if (sorting) {
            getString(R.string.answer_sort, before.getString("answer"), after.getString("answer"), 100 * after.getDouble("sure"))
        } else {
            getString(R.string.answer_write, before.getDouble("perplexity"), after.getDouble("perplexity")) +
                "\n\n" + after.optString("written")
        }
    }

    private fun pairs(found: JSONObject?, name: String): Points {
        val points = found?.getJSONArray(name) ?: JSONArray()
        return (0 until points.length()).map(points::getJSONArray).map { it.getDouble(0) to it.getDouble(1) }
    }

    private fun field(id: Int) = text(id).text.toString()

    private fun wish(id: Int, name: String, now: Boolean) {
        val box = findViewById<CheckBox>(id)
        box.isChecked = now
        box.setOnCheckedChangeListener { _, on -> Wish.set(this, name, on) }
    }

    private fun slide(id: Int, now: Int, moved: (Int) -> Unit) {
        val bar = findViewById<SeekBar>(id)
        bar.progress = now
        moved(now)
        bar.setOnSeekBarChangeListener(object : SeekBar.OnSeekBarChangeListener {
            override fun onProgressChanged(bar: SeekBar, value: Int, byUser: Boolean) = moved(value)

            override fun onStartTrackingTouch(bar: SeekBar) = Unit

            override fun onStopTrackingTouch(bar: SeekBar) = Unit
        })
    }

    companion object {
        private const val KIND = "kind"
        private const val TAPPED = "tapped"
        private const val LONGEST = 2_000_000
        private const val SHOWN = 100

        fun open(from: Context, kind: String) {
            from.startActivity(Intent(from, TaskActivity::class.java).putExtra(KIND, kind))
        }
    }
}
