/* Preloaded, it makes reads of some files fail, as a disk or a network does.

   FAIL_PATH: part of the name of these files. FAIL_PLAN: a file that holds, as text, how many reads
   are to fail and with which number, "2 5"; the count goes down with each failure. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fails(int descriptor) {
  const char *part = getenv("FAIL_PATH"), *plan = getenv("FAIL_PLAN");
  char link[64], path[4096];
  if (!part || !plan) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  if (!strstr(path, part)) return 0;
  FILE *file = fopen(plan, "r+");
  if (!file) return 0;
  long left = 0, number = 0;
  int whole = fscanf(file, "%ld %ld", &left, &number) == 2 && left > 0;
  if (whole) {
    rewind(file);
    fprintf(file, "%ld %ld      ", left - 1, number);
  }
  fclose(file);
  if (whole) errno = (int)number;
  return whole;
}

#define REAL(name)                    \
  static __typeof__(name) *real;      \
  if (!real) real = dlsym(RTLD_NEXT, #name)

ssize_t read(int fd, void *to, size_t size) {
  REAL(read);
  return fails(fd) ? -1 : real(fd, to, size);
}

ssize_t pread(int fd, void *to, size_t size, off_t from) {
  REAL(pread);
  return fails(fd) ? -1 : real(fd, to, size, from);
}

ssize_t pread64(int fd, void *to, size_t size, off64_t from) {
  REAL(pread64);
  return fails(fd) ? -1 : real(fd, to, size, from);
}
