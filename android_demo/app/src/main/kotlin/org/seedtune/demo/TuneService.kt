package org.seedtune.demo

import android.app.Notification
import android.app.NotificationChannel
import android.app.NotificationManager
import android.app.PendingIntent
import android.app.Service
import android.content.Context
import android.content.Intent
import android.os.Handler
import android.os.IBinder
import android.os.Looper
import android.os.PowerManager
import android.util.Log
import java.util.concurrent.Executors

/** Learning that goes on without a screen, in the foreground as the system counts it. */
class TuneService : Service(), Trainer.Watcher {
    private val main = Handler(Looper.getMainLooper())
    private val background = Executors.newSingleThreadExecutor()
    private val conditions = Conditions()
    private lateinit var lock: PowerManager.WakeLock
    private var lastStart = 0

    /** Starts that are not obeyed yet: until then no session's end is this service's. */
    private var due = 0

    @Volatile
    private var trainer: Trainer? = null

    override fun onBind(intent: Intent?): IBinder? = null

    override fun onCreate() {
        val power = getSystemService(PowerManager::class.java)
        lock = power.newWakeLock(PowerManager.PARTIAL_WAKE_LOCK, "seedtune:learning")
        lock.setReferenceCounted(false)
        val name = getString(R.string.channel)
        val channel = NotificationChannel(CHANNEL, name, NotificationManager.IMPORTANCE_LOW)
        getSystemService(NotificationManager::class.java).createNotificationChannel(channel)
    }

    override fun onStartCommand(intent: Intent?, flags: Int, startId: Int): Int {
        lastStart = startId
        val now = trainer?.report?.takeIf { it.active }
        // Within seconds, or the system ends the app.
        if (!toForeground(now ?: Report(getString(R.string.getting_ready))) && now == null) {
            stopSelf(startId) // not from the background: it goes on when the app is opened
            return START_NOT_STICKY
        }
        val action = intent?.action ?: LEARN // the system starts it anew after it was killed
        due++
        background.execute {
            val found = runCatching { obey(action, intent?.getStringExtra(KIND).orEmpty()) }
            main.post { due-- }
            show(found.getOrElse { Report("$it".lineSequence().first(), active = false) })
        }
        return START_STICKY
    }

    private fun obey(action: String, kind: String): Report {
        val trainer = Seedtune.trainer(this)
        when (action) {
            LEARN -> {
                trainer.heed(reasonToRest())
                trainer.start(kind, Wish.share(this) / 100.0)
                main.removeCallbacks(look)
                main.postDelayed(look, LOOK_EVERY)
            }
            PAUSE -> trainer.pause()
            RESUME -> trainer.resume()
            STOP -> trainer.stop()
        }
        if (this.trainer == null) {
            this.trainer = trainer
            trainer.watch(this)
        }
        return trainer.report
    }

    /** Looks at charger, heat and what was asked: not all of them tell of a change. */
    private val look = object : Runnable {
        override fun run() {
            background.execute { trainer?.takeIf { it.report.active }?.heed(reasonToRest()) }
            main.postDelayed(this, LOOK_EVERY)
        }
    }

    private fun reasonToRest() = conditions.reason(Seedtune.state(this), Wish.of(this))

    override fun show(report: Report) {
        main.post {
            val over = !report.active && due == 0
            if (report.active && !report.resting) lock.acquire(LOCK_AT_MOST) else lock.release()
            if (over) stopForeground(STOP_FOREGROUND_DETACH)
            getSystemService(NotificationManager::class.java).notify(ID, notification(report))
            if (over) stopSelf(lastStart) // no start that is on its way is lost
        }
    }

    /** Whether the system lets it: not if it was started in the background. */
    private fun toForeground(report: Report): Boolean = try {
        startForeground(ID, notification(report)) // of the type in the manifest
        true
    } catch (error: IllegalStateException) {
        false
    }

    private fun notification(report: Report): Notification {
        val open = packageManager.getLaunchIntentForPackage(packageName)!! // as it was left, texts and all
        val builder = Notification.Builder(this, CHANNEL)
            .setSmallIcon(R.drawable.ic_learning)
            .setContentTitle(getString(R.string.app_name))
            .setContentText(report.text)
            .setOnlyAlertOnce(true)
            .setOngoing(report.active)
            .setContentIntent(PendingIntent.getActivity(this, 0, open, PendingIntent.FLAG_IMMUTABLE))
        if (report.active) {
            builder.setProgress(report.steps, report.step, report.steps == 0)
            builder.addAction(if (report.resting) action(RESUME, R.string.resume) else action(PAUSE, R.string.pause))
            builder.addAction(action(STOP, R.string.stop))
        }
        return builder.build()
    }

    private fun action(what: String, title: Int): Notification.Action {
        val intent = Intent(this, TuneService::class.java).setAction(what)
        val pending = PendingIntent.getService(this, what.hashCode(), intent, PendingIntent.FLAG_IMMUTABLE)
        return Notification.Action.Builder(null, getString(title), pending).build()
    }

    override fun onDestroy() {
        trainer?.forget(this)
        background.shutdown()
        main.removeCallbacksAndMessages(null)
        lock.release()
    }

    companion object {
        const val LEARN = "learn"
        const val PAUSE = "pause"
        const val RESUME = "resume"
        const val STOP = "stop"
        private const val KIND = "kind"
        private const val CHANNEL = "learning"
        private const val ID = 1
        private const val LOOK_EVERY = 15_000L
        private const val LOCK_AT_MOST = 10 * 60_000L

        /** From a screen. One that went meanwhile may not start a service: it goes on when the app is opened. */
        fun tell(context: Context, action: String, kind: String = "") {
            val intent = Intent(context, TuneService::class.java).setAction(action).putExtra(KIND, kind)
            try {
                context.startForegroundService(intent)
            } catch (error: IllegalStateException) {
                Log.w("seedtune", error)
            }
        }
    }
}

/** What the user asks of learning, kept. */
object Wish {
    const val CHARGING = "only_charging"
    const val COOL = "only_cool"
    const val SHARE = "share"

    private fun kept(context: Context) = context.getSharedPreferences("wishes", Context.MODE_PRIVATE)

    fun of(context: Context) = Wishes(kept(context).getBoolean(CHARGING, true), kept(context).getBoolean(COOL, true))

    /** Percent of the processor's time. */
    fun share(context: Context) = kept(context).getInt(SHARE, 50)

    fun set(context: Context, name: String, value: Boolean) = kept(context).edit().putBoolean(name, value).apply()

    fun setShare(context: Context, percent: Int) = kept(context).edit().putInt(SHARE, percent).apply()
}
