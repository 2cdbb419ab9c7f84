// liblog: what Android writes to logcat goes to standard error.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

int __android_log_vprint(int priority, const char *tag, const char *format, va_list rest) {
  if (priority < 5) return 0;  // warnings and worse
  fprintf(stderr, "[%s] ", tag);
  int written = vfprintf(stderr, format, rest);
  fputc('\n', stderr);
  return written;
}

int __android_log_print(int priority, const char *tag, const char *format, ...) {
  va_list rest;
  va_start(rest, format);
  int written = __android_log_vprint(priority, tag, format, rest);
  va_end(rest);
  return written;
}

int __android_log_write(int priority, const char *tag, const char *text) {
  return __android_log_print(priority, tag, "%s", text);
}

void __android_log_assert(const char *condition, const char *tag, const char *format, ...) {
  va_list rest;
  va_start(rest, format);
  fprintf(stderr, "[%s] %s: ", tag, condition ? condition : "");
  if (format) vfprintf(stderr, format, rest);
  fputc('\n', stderr);
  abort();
}
