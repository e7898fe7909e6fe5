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
