package org.seedtune.demo

import android.app.Activity
import android.content.Intent
import android.net.Uri
import android.view.View
import android.widget.TextView
import org.json.JSONObject

/** What the screens have in common. */
abstract class Page : Activity(), Screen {
    override fun onStart() {
        super.onStart()
        Seedtune.lines.come(this)
        ask("state") { if ((it as JSONObject).getBoolean("unfinished")) TuneService.tell(this, TuneService.LEARN) }
    }

    override fun onStop() {
        super.onStop()
        Seedtune.lines.leave(this)
    }

    override fun say(line: String) = runOnUiThread { text(R.id.line).text = line }

    /** Lets the user choose a file of a [type], for [chosen]. */
    protected fun choose(type: String) {
        val open = Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType(type)
        startActivityForResult(open, 0)
    }

    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        data?.data?.takeIf { result == RESULT_OK }?.let(::chosen)
    }

    protected abstract fun chosen(uri: Uri)

    protected fun ask(name: String, vararg arguments: Any?, show: (Any?) -> Unit) =
        Seedtune.ask(this, { it.ok(name, *arguments) }, show)

    protected fun text(id: Int) = findViewById<TextView>(id)

    protected fun on(id: Int, act: () -> Unit) = findViewById<View>(id).setOnClickListener { act() }
}
