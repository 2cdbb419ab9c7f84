"""The app's mind: all that is not Android. Kotlin calls ``App`` by its methods' names.

Answers are JSON, failures one line for the person who holds the phone. Nothing here imports
anything of Android or Java.
"""
