// ---------------------------------------------------------------------------- tables of rows
// A table: [rows, units, first unit of each row.., units, extent of each row.., and for each row and
// buffer its slot and its offset in bytes]. A unit is 16 elements of one row.
struct dc_rows { void **slots; const i64 *table; };
typedef void (*dc_piece)(void *const *buffers, i64 extent, i64 low, i64 high);
// Threads share the units evenly: a piece is what one thread has of one row.
template <int BUFFERS, dc_piece PIECE> static void dc_walk_rows(void *call_, i64 tid, i64 threads) {
  const dc_rows &call = *(const dc_rows *)call_;
  const i64 rows = call.table[0], units = call.table[1];
  const i64 *starts = call.table + 2, *extents = starts + rows + 1, *places = extents + rows;
  i64 unit = units * tid / threads;
  const i64 end = units * (tid + 1) / threads;
  if (unit >= end) return;
  i64 row = 0;
  for (i64 last = rows; last - row > 1;) {  // the last row that begins at `unit` or before
    const i64 middle = (row + last) / 2;
    if (starts[middle] <= unit) row = middle; else last = middle;
  }
  for (; unit < end; ++row) {
    const i64 stop = end < starts[row + 1] ? end : starts[row + 1];
    const i64 low = (unit - starts[row]) * 16, high = (stop - starts[row]) * 16;
    if (low == high) continue;
    void *buffers[BUFFERS];
    const i64 *place = places + row * BUFFERS * 2;
    for (int b = 0; b < BUFFERS; ++b) buffers[b] = (char *)call.slots[place[2 * b]] + place[2 * b + 1];
    PIECE(buffers, extents[row], low, high < extents[row] ? high : extents[row]);
    unit = stop;
  }
}
