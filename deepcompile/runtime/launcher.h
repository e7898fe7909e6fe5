// Walks a launch table: launch_table.py writes it and says what its numbers mean.

typedef long long i64;
typedef int (*Launch)(void *function, unsigned programs, unsigned, unsigned, unsigned threads,
                      unsigned, unsigned, unsigned shared, void *stream, void **arguments,
                      void **extra);
typedef int (*Call)(i64 number);
typedef struct { void *function; i64 threads, shared; } Loaded;

enum { END, LAUNCH, CALL };
enum { POINTER, ALIGNED, NUMBER };
enum { MOST_ARGUMENTS = 512, ALIGNMENT = 16 };

// 0 when all is well, -1 when a call failed, else 1 + where in the table `*error` came from.
extern "C" i64 deepcompile_walk(const i64 *table, void *const *slots, void *stream, Launch launch,
                                Call call, int *error) {
  i64 values[MOST_ARGUMENTS];
  void *arguments[MOST_ARGUMENTS];
  for (const i64 *at = table;;) {
    if (at[0] == END) return 0;
    if (at[0] == CALL) {
      if (call(at[1])) return -1;
      at += 2;
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

// The addresses of `count` places, each a slot and bytes behind.
extern "C" void deepcompile_places(const i64 *sources, char *const *slots, i64 count, i64 *places) {
  for (i64 n = 0; n < count; ++n) places[n] = (i64)(slots[sources[2 * n]] + sources[2 * n + 1]);
}
