// Functions of bionic, Android's C library, whose form differs from glibc's. Each gets bionic's
// symbol version; every other function that the libraries need jumps to glibc's (see ../shim.py).
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <wchar.h>

#define EXPORT(own, name) __asm__(".symver " #own "," #name "@LIBC")

// Standard streams: old code takes elements of an array of FILE, whose size on 64 bits is 152.
#define FILE_SIZE 152
char own_sF[3 * FILE_SIZE] __attribute__((aligned(16)));
FILE *own_stdout, *own_stderr, *own_stdin;
EXPORT(own_sF, __sF);
EXPORT(own_stdout, stdout);
EXPORT(own_stderr, stderr);
EXPORT(own_stdin, stdin);

__attribute__((constructor)) static void init(void) {
  own_stdout = stdout;
  own_stderr = stderr;
  own_stdin = stdin;
}

static FILE *real(FILE *file) {
  switch ((char *)file - own_sF) {
    case 0: return stdin;
    case FILE_SIZE: return stdout;
    case 2 * FILE_SIZE: return stderr;
    default: return file;
  }
}

int own_fprintf(FILE *file, const char *format, ...) {
  va_list rest;
  va_start(rest, format);
  int written = vfprintf(real(file), format, rest);
  va_end(rest);
  return written;
}
int own_vfprintf(FILE *file, const char *format, va_list rest) { return vfprintf(real(file), format, rest); }
size_t own_fwrite(const void *data, size_t size, size_t count, FILE *file) { return fwrite(data, size, count, real(file)); }
int own_fputc(int c, FILE *file) { return fputc(c, real(file)); }
int own_fputs(const char *text, FILE *file) { return fputs(text, real(file)); }
int own_fflush(FILE *file) { return fflush(file ? real(file) : NULL); }
int own_getc(FILE *file) { return getc(real(file)); }
int own_ungetc(int c, FILE *file) { return ungetc(c, real(file)); }
wint_t own_fputwc(wchar_t c, FILE *file) { return fputwc(c, real(file)); }
wint_t own_getwc(FILE *file) { return getwc(real(file)); }
wint_t own_ungetwc(wint_t c, FILE *file) { return ungetwc(c, real(file)); }
int own_setvbuf(FILE *file, char *buffer, int mode, size_t size) { return setvbuf(real(file), buffer, mode, size); }
EXPORT(own_fprintf, fprintf);
EXPORT(own_vfprintf, vfprintf);
EXPORT(own_fwrite, fwrite);
EXPORT(own_fputc, fputc);
EXPORT(own_fputs, fputs);
EXPORT(own_fflush, fflush);
EXPORT(own_getc, getc);
EXPORT(own_ungetc, ungetc);
EXPORT(own_fputwc, fputwc);
EXPORT(own_getwc, getwc);
EXPORT(own_ungetwc, ungetwc);
EXPORT(own_setvbuf, setvbuf);

int *own_errno(void) { return &errno; }
EXPORT(own_errno, __errno);

// bionic numbers what sysconf knows in its own order.
long own_sysconf(int name) {
  switch (name) {
    case 39: case 40: return sysconf(_SC_PAGESIZE);
    case 96: return sysconf(_SC_NPROCESSORS_CONF);
    case 97: return sysconf(_SC_NPROCESSORS_ONLN);
    case 98: return sysconf(_SC_PHYS_PAGES);
    case 99: return sysconf(_SC_AVPHYS_PAGES);
  }
  fprintf(stderr, "bionic's sysconf(%d) is not known to the shim\n", name);
  errno = EINVAL;
  return -1;
}
EXPORT(own_sysconf, sysconf);

extern int __xpg_strerror_r(int, char *, size_t);
int own_strerror_r(int number, char *buffer, size_t size) { return __xpg_strerror_r(number, buffer, size); }
char *own_gnu_strerror_r(int number, char *buffer, size_t size) { return strerror_r(number, buffer, size); }
EXPORT(own_strerror_r, strerror_r);
EXPORT(own_gnu_strerror_r, __gnu_strerror_r);

void own_assert2(const char *file, int line, const char *function, const char *text) {
  fprintf(stderr, "%s:%d: %s: %s\n", file, line, function, text);
  abort();
}
void own_abort_message(const char *text) { fprintf(stderr, "abort: %s\n", text); }
int own_property(const char *name, char *value) {
  value[0] = 0;
  return 0;
}
EXPORT(own_assert2, __assert2);
EXPORT(own_abort_message, android_set_abort_message);
EXPORT(own_property, __system_property_get);

// Checked forms that glibc lacks; the compiler gives the size of the buffer.
size_t own_strlen_chk(const char *text, size_t size) { return strlen(text); }
char *own_strchr_chk(const char *text, int c, size_t size) { return strchr(text, c); }
char *own_strrchr_chk(const char *text, int c, size_t size) { return strrchr(text, c); }
int own_open_2(const char *path, int flags) { return open(path, flags); }
ssize_t own_write_chk(int file, const void *data, size_t count, size_t size) { return write(file, data, count); }
EXPORT(own_strlen_chk, __strlen_chk);
EXPORT(own_strchr_chk, __strchr_chk);
EXPORT(own_strrchr_chk, __strrchr_chk);
EXPORT(own_open_2, __open_2);
__asm__(".symver own_write_chk,__write_chk@LIBC_N");

// A sigset_t has 8 bytes there, 128 here.
int own_sigfillset(unsigned long *set) {
  *set = ~0ul;
  return 0;
}
int own_sigmask(int how, const unsigned long *set, unsigned long *old) {
  return syscall(SYS_rt_sigprocmask, how, set, old, 8) ? errno : 0;
}
EXPORT(own_sigfillset, sigfillset);
EXPORT(own_sigmask, pthread_sigmask);
