plugins {
    alias(libs.plugins.android.application)
    alias(libs.plugins.kotlin.android)
    alias(libs.plugins.chaquopy)
}

// The device side of seedtune, as it stands in this repository.
val seedtune = layout.buildDirectory.dir("seedtune")
val copySeedtune = tasks.register<Sync>("copySeedtune") {
    from(rootDir.resolve("../runtime")) {
        into("seedtune/runtime")
        exclude("**/__pycache__", "**/*.cpp")
    }
    into(seedtune)
}

android {
    namespace = "org.seedtune.demo"
    compileSdk = 36

    defaultConfig {
        applicationId = "org.seedtune.demo"
        minSdk = 26
        targetSdk = 36
        versionCode = 1
        versionName = "0.1.0"
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
    }
    buildTypes {
        release {
            isMinifyEnabled = false // Python finds Java's classes by their names
            signingConfig = signingConfigs.getByName("debug")
        }
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    packaging {
        // ExecuTorch and Python's wheels both bring C++'s library.
        jniLibs { pickFirsts += "**/libc++_shared.so" }
    }
}

kotlin {
    compilerOptions {
        jvmTarget = org.jetbrains.kotlin.gradle.dsl.JvmTarget.JVM_17
        allWarningsAsErrors = true
    }
}

chaquopy {
    defaultConfig {
        version = "3.13"
        pip {
            // Wheels for Android that PyPI does not have: Python's own tags, built by Flet.
            options("--extra-index-url", "https://pypi.flet.dev")
            install("numpy==2.4.6")
            install("safetensors==0.8.0")
            install("tokenizers==0.23.1")
        }
    }
    sourceSets { getByName("main") { srcDir(seedtune) } }
}

tasks.configureEach {
    if (name.startsWith("merge") && name.endsWith("PythonSources")) dependsOn(copySeedtune)
}

dependencies { implementation(libs.executorch.android) }
