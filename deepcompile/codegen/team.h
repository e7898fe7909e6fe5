// ---------------------------------------------------------------------------- worker threads
// Work is shared through the process's own OpenMP runtime, whose entry points are handed in once.
typedef void (*dc_body)(void *call, i64 tid, i64 threads);
typedef void (*dc_fork)(void (*)(void *), void *, unsigned, unsigned);
typedef int (*dc_number)(void);
static dc_fork dc_fork_team = 0;
static dc_number dc_thread_number = 0, dc_team_size = 0;
extern "C" void deepcompile_threads(void *fork, void *number, void *size) {
  dc_fork_team = (dc_fork)fork;
  dc_thread_number = (dc_number)number;
  dc_team_size = (dc_number)size;
}
struct dc_team { dc_body body; void *call; i64 size; };
static void dc_team_member(void *team_) {
  dc_team &team = *(dc_team *)team_;
  const i64 tid = dc_thread_number(), size = dc_team_size();
  if (tid == 0) team.size = size;  // may be smaller than was asked for
  team.body(team.call, tid, size);
}
static inline void dc_parallel(dc_body body, void *call, i64 &threads) {
  if (threads <= 1 || !dc_fork_team) {
    threads = 1;
    body(call, 0, 1);
    return;
  }
  dc_team team = {body, call, 1};
  dc_fork_team(dc_team_member, &team, (unsigned)threads, 0);
  threads = team.size;
}

// Transposition in blocks that fit the first cache, each thread a band of the target's rows.
struct dc_turn { const float *from; float *to; i64 rows, columns, from_stride, to_stride; };
static void dc_turn_band(void *call, i64 tid, i64 threads) {
  const dc_turn &t = *(dc_turn *)call;
  const i64 blocks = (t.columns + 15) / 16;
  for (i64 b = blocks * tid / threads, end = blocks * (tid + 1) / threads; b < end; ++b) {
    const i64 c0 = b * 16, width = t.columns - c0 < 16 ? t.columns - c0 : 16;
    for (i64 r0 = 0; r0 < t.rows; r0 += 16) {
      const i64 height = t.rows - r0 < 16 ? t.rows - r0 : 16;
      const float *from = t.from + r0 * t.from_stride + c0;
      float *to = t.to + c0 * t.to_stride + r0;
      if (width == 16 && height == 16) {
        float tile[16][16];
        for (int r = 0; r < 16; ++r) __builtin_memcpy(tile[r], from + r * t.from_stride, 64);
        for (int c = 0; c < 16; ++c) {
          float line[16];
          for (int r = 0; r < 16; ++r) line[r] = tile[r][c];
          __builtin_memcpy(to + c * t.to_stride, line, 64);
        }
      } else {
        for (i64 c = 0; c < width; ++c)
          for (i64 r = 0; r < height; ++r) to[c * t.to_stride + r] = from[r * t.from_stride + c];
      }
    }
  }
}
static inline void dc_transpose(const float *from, float *to, i64 rows, i64 columns, i64 from_stride,
                                i64 to_stride, i64 threads) {
  dc_turn call = {from, to, rows, columns, from_stride, to_stride};
  i64 team = rows * columns / 32768 + 1;
  team = team < threads ? team : threads;
  dc_parallel(dc_turn_band, &call, team);
}

// A distance as the number of a lane: what is no lane of this vector stays none.
static inline i32 dc_near(i64 distance) { return distance < 0 || distance > 15 ? -1 : (i32)distance; }

// Size expressions are printed with these names.
static inline i64 floordiv(i64 a, i64 b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }
static inline i64 mod(i64 a, i64 b) { return a - floordiv(a, b) * b; }
