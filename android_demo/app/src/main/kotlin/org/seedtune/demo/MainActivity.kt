package org.seedtune.demo

import android.Manifest
import android.app.Activity
import android.app.AlertDialog
import android.content.Intent
import android.net.Uri
import android.os.Build
import android.os.Bundle
import android.provider.OpenableColumns
import android.view.View
import android.widget.Button
import android.widget.TextView
import java.io.File
import org.json.JSONObject

/** The model, the two tasks, and the button that deletes everything. */
class MainActivity : Activity(), Screen {
    private val incoming by lazy { File(filesDir, "incoming") }

    override fun onCreate(saved: Bundle?) {
        super.onCreate(saved)
        setContentView(R.layout.main)
        findViewById<Button>(R.id.pick).setOnClickListener {
            val open = Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType("*/*")
            startActivityForResult(open, PICK)
        }
        findViewById<Button>(R.id.sort).setOnClickListener { TaskActivity.open(this, "sort") }
        findViewById<Button>(R.id.write).setOnClickListener { TaskActivity.open(this, "write") }
        findViewById<Button>(R.id.wipe).setOnClickListener { askToWipe() }
        if (saved != null) return
        if (Build.VERSION.SDK_INT >= 33) requestPermissions(arrayOf(Manifest.permission.POST_NOTIFICATIONS), 0)
    }

    override fun onResume() {
        super.onResume()
        take {}
    }

    /** Waits for [first], then takes in what was picked or pushed; one by one, so that each is taken once. */
    private fun take(first: () -> Unit) {
        Seedtune.ask(this, { brain ->
            first()
            incoming.listFiles { file -> file.name.endsWith(".seedtune") }?.firstOrNull()?.let {
                runOnUiThread { say(getString(R.string.checking)) }
                brain.ok("take_bundle", it.path)
            }
        }) { taken -> if (taken != null) say(getString(R.string.checked)) }
        refresh()
    }

    private fun refresh() {
        Seedtune.ask(this, "state") { state ->
            state as JSONObject
            val bundle = state.optJSONObject("bundle")
            findViewById<TextView>(R.id.model).text = if (bundle == null) {
                getString(R.string.no_model)
            } else {
                getString(R.string.model, bundle.getString("name"), bundle.getInt("megabytes"), bundle.getString("sha256").take(16))
            }
            for (id in listOf(R.id.sort, R.id.write)) findViewById<View>(id).isEnabled = bundle != null
            if (state.getBoolean("unfinished")) TuneService.tell(this, TuneService.GO_ON)
        }
    }

    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        val uri = data?.data
        if (request != PICK || result != RESULT_OK || uri == null) return
        say(getString(R.string.copying))
        take { copy(uri) }
    }

    private fun copy(uri: Uri) = Intake(incoming).take("picked.seedtune", sizeOf(uri), { done, of ->
        runOnUiThread { say(getString(R.string.copied, done / 1_000_000, maxOf(done, of) / 1_000_000)) }
    }) { contentResolver.openInputStream(uri) }

    private fun sizeOf(uri: Uri): Long =
        contentResolver.query(uri, arrayOf(OpenableColumns.SIZE), null, null, null)?.use {
            if (it.moveToFirst() && !it.isNull(0)) it.getLong(0) else null
        } ?: -1

    private fun askToWipe() {
        AlertDialog.Builder(this)
            .setMessage(R.string.wipe_sure)
            .setNegativeButton(android.R.string.cancel, null)
            .setPositiveButton(R.string.wipe) { _, _ ->
                Seedtune.ask(this, {
                    val trainer = Seedtune.trainer(this)
                    trainer.stop()
                    trainer.join(WAIT)
                    incoming.deleteRecursively()
                    it.ok("wipe")
                }) { say(getString(R.string.wiped)) }
                refresh()
            }
            .show()
    }

    override fun say(line: String) {
        findViewById<TextView>(R.id.line).text = line
    }

    private companion object {
        const val PICK = 1
        const val WAIT = 120_000L
    }
}
