package org.seedtune.demo

import android.app.AlertDialog
import android.net.Uri
import android.os.Bundle
import android.provider.OpenableColumns
import android.view.View
import java.io.File
import org.json.JSONObject

/** The model, the two tasks, and the button that deletes everything. */
class MainActivity : Page() {
    private val incoming by lazy { File(filesDir, "incoming") }
    private var question: AlertDialog? = null

    override fun onCreate(saved: Bundle?) {
        super.onCreate(saved)
        setContentView(R.layout.main)
        on(R.id.pick) { choose("*/*") }
        on(R.id.sort) { TaskActivity.open(this, "sort") }
        on(R.id.write) { TaskActivity.open(this, "write") }
        on(R.id.wipe) { askToWipe() }
        if (saved?.getBoolean(ASKING) == true) askToWipe()
    }

    override fun onResume() {
        super.onResume()
        take {}
    }

    override fun chosen(uri: Uri) = take {
        Intake(incoming).take({ sizeOf(uri) }, { done, of ->
            tell(R.string.copied, done / 1_000_000, maxOf(done, of) / 1_000_000)
        }) { contentResolver.openInputStream(uri) }
    }

    /** Waits for [first], then uses what was picked; one by one, so that each is used once. */
    private fun take(first: () -> Unit) {
        Seedtune.ask(this, { brain ->
            first()
            Intake(incoming).waiting()?.let {
                brain.ok("take_bundle", it.path, Checking { done, of -> tell(R.string.checking, 100 * done / of) })
                tell(R.string.checked)
            }
        }) {}
        refresh()
    }

    private fun refresh() = ask("state") { state ->
        val bundle = (state as JSONObject).optJSONObject("bundle")
        text(R.id.model).text = bundle?.let {
            getString(R.string.model, it.getString("name"), it.getInt("megabytes"), it.getString("sha256").take(16))
        } ?: getString(R.string.no_model)
        for (id in listOf(R.id.sort, R.id.write)) findViewById<View>(id).isEnabled = bundle != null
    }

    private fun sizeOf(uri: Uri): Long =
        contentResolver.query(uri, arrayOf(OpenableColumns.SIZE), null, null, null)?.use {
            if (it.moveToFirst() && !it.isNull(0)) it.getLong(0) else null
        } ?: -1

    /** A line from the background, on whatever screen is in front. */
    private fun tell(line: Int, vararg what: Any) = Seedtune.lines.say(getString(line, *what))

    private fun askToWipe() {
        question = AlertDialog.Builder(this)
            .setMessage(R.string.wipe_sure)
            .setNegativeButton(android.R.string.cancel, null)
            .setPositiveButton(R.string.wipe) { _, _ -> wipe() }
            .show()
    }

    private fun wipe() {
        Seedtune.ask(this, { brain ->
            tell(R.string.wiping)
            val trainer = Seedtune.trainer(this)
            trainer.stop()
            trainer.join(WAIT)
            brain.ok("wipe")
            incoming.deleteRecursively()
            tell(R.string.wiped)
        }) {}
        refresh()
    }

    override fun onSaveInstanceState(state: Bundle) {
        super.onSaveInstanceState(state)
        state.putBoolean(ASKING, question?.isShowing == true)
    }

    override fun onDestroy() {
        super.onDestroy()
        question?.dismiss() // it is asked again after a rotation
    }

    private companion object {
        const val ASKING = "asking"
        const val WAIT = 120_000L
    }
}
