// Walks a launch table: launch_table.py writes it and says what its numbers mean.

typedef long long i64;
typedef int (*Launch)(void *function, unsigned programs, unsigned, unsigned, unsigned threads,
                      unsigned, unsigned, unsigned shared, void *stream, void **arguments,
                      void **extra);
typedef int (*Copy)(i64 target, const void *source, unsigned long size, void *stream);
typedef int (*Call)(i64 number);
typedef struct { void *function; i64 threads, shared; } Loaded;

enum { END, LAUNCH, CALL, PLACES };
enum { POINTER, ALIGNED, NUMBER };
enum { MOST_ARGUMENTS = 512, ALIGNMENT = 16 };

// 0 when all is well, -1 when a call failed, else 1 + where in the table `*error` came from.
extern "C" i64 deepcompile_walk(const i64 *table, void *const *slots, void *stream, Launch launch,
                                Copy copy, Call call, int *error) {
  i64 values[MOST_ARGUMENTS];
  void *arguments[MOST_ARGUMENTS];
  for (const i64 *at = table;;) {
    if (at[0] == END) return 0;
    if (at[0] == CALL) {
      if (call(at[1])) return -1;
      at += 2;
      continue;
    }
    if (at[0] == PLACES) {
      i64 *places = (i64 *)at[2], count = at[3];
      const i64 *given = at + 4;
      for (i64 n = 0; n < count; ++n) places[n] = (i64)slots[given[2 * n]] + given[2 * n + 1];
      *error = copy((i64)slots[at[1]], places, count * sizeof(i64), stream);
      if (*error) return 1 + (at - table);
      at = given + 2 * count;
      continue;
    }
    const Loaded *loaded = (const Loaded *)at[1];
    i64 programs = at[3], count = at[4], seen = 0;
    const i64 *given = at + 5;
    for (i64 n = 0; n < count; ++n, given += 3) {
      values[n] = given[0] == NUMBER ? given[1] : (i64)slots[given[1]] + given[2];
      if (given[0] == ALIGNED) seen |= values[n];
      arguments[n] = &values[n];
    }
    if (seen % ALIGNMENT) {
      loaded = (const Loaded *)at[2];
      if (!loaded->function && call(table - at - 1)) return -1;
    }
    *error = launch(loaded->function, programs, 1, 1, loaded->threads, 1, 1, loaded->shared,
                    stream, arguments, 0);
    if (*error) return 1 + (at - table);
    at = given;
  }
}
