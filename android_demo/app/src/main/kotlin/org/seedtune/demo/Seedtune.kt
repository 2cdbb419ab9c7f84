package org.seedtune.demo

import android.content.Context
import android.content.Intent
import android.content.IntentFilter
import android.os.BatteryManager
import android.os.Build
import android.os.PowerManager
import com.chaquo.python.PyObject
import com.chaquo.python.Python
import com.chaquo.python.android.AndroidPlatform
import java.io.File
import java.util.concurrent.Executors
import org.json.JSONObject

/** [Brain] inside this process, by Chaquopy. */
private class PythonBrain(context: Context) : Brain {
    private val app: PyObject = run {
        if (!Python.isStarted()) Python.start(AndroidPlatform(context))
        Python.getInstance().getModule("seedtune_app.app").callAttr("App", File(context.filesDir, "seedtune").path)
    }

    override fun call(name: String, vararg arguments: Any?) = app.callAttr(name, *arguments).toString()
}

/** The one trainer of the process, a thread on which screens ask Python, and what is said to them. */
object Seedtune {
    val lines = Lines()
    private val asking = Executors.newSingleThreadExecutor()
    private var brain: Brain? = null
    private var made: Trainer? = null

    /** Starts Python, which takes a second or two: not on the main thread. */
    @Synchronized
    fun brain(context: Context): Brain = brain ?: PythonBrain(context.applicationContext).also { brain = it }

    @Synchronized
    fun trainer(context: Context): Trainer = made ?: Trainer(brain(context)).also { made = it }

    /** Do [work] in the background, then [show] what it gave, if the page is still there. */
    fun <T> ask(page: Page, work: (Brain) -> T, show: (T) -> Unit) {
        asking.execute {
            val found = runCatching { work(brain(page)) }
            found.onFailure { lines.say((it.message ?: "$it").lineSequence().first()) }
            page.runOnUiThread { if (!page.isDestroyed) found.onSuccess(show) }
        }
    }

    fun state(context: Context): PhoneState {
        val battery = context.registerReceiver(null, IntentFilter(Intent.ACTION_BATTERY_CHANGED))
        val power = context.getSystemService(PowerManager::class.java)
        return PhoneState(
            charging = (battery?.getIntExtra(BatteryManager.EXTRA_PLUGGED, 0) ?: 0) != 0,
            thermal = if (Build.VERSION.SDK_INT >= 29) power.currentThermalStatus else null,
            batteryTenths = battery?.getIntExtra(BatteryManager.EXTRA_TEMPERATURE, 0) ?: 0,
            saving = power.isPowerSaveMode,
        )
    }
}

/** What is behind `ok` in Python's answer; an `error` is thrown. */
fun Brain.ok(name: String, vararg arguments: Any?): Any? {
    val answer = JSONObject(call(name, *arguments))
    check(!answer.has("error")) { answer.getString("error") }
    return answer.opt("ok").takeIf { it != JSONObject.NULL }
}
