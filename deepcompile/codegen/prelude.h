// Vector prelude of the C++ code generator: pasted on top of every generated translation unit.
//
// Sixteen lanes for every element type, so that conversions are lane-wise. A register value is
// either a native vector (as wide as the target has) or a `pair` of halves, down to native ones.
// Treat vf32, vf64, vi32, vi64 and vb as opaque: use the dc_ functions, which have the same names
// for vectors and for scalars (float, double, i32, i64, bool). No header is included.
// Compile with: -std=c++17 -O3 -ffp-contract=fast -fno-math-errno -fno-trapping-math -Wno-psabi
// NaN, infinities and signed zeros follow eager torch; -ffast-math would break that.

#define DC_LANES 16
#define DC_INLINE static inline __attribute__((always_inline, unused))

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__)
#define DC_AVX512 1
#define DC_WIDTH 64
#elif defined(__AVX__)
#define DC_WIDTH 32
#else
#define DC_WIDTH 16
#endif

typedef int i32;
typedef long long i64;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef short i16;
typedef signed char i8;
typedef unsigned char u8;
struct bool8 { u8 bits; };
struct bf16 { unsigned short bits; };
struct f16 { unsigned short bits; };
struct f8e4m3 { unsigned char bits; };

// ---------------------------------------------------------------------------------- types
template <class E, int N> struct dc_vec {
  typedef E type __attribute__((vector_size(sizeof(E) * N)));
};
template <class E, int N> using dc_v = typename dc_vec<E, N>::type;
typedef dc_v<float, DC_WIDTH / 4> nf;
typedef dc_v<double, DC_WIDTH / 8> nd;
typedef dc_v<i32, DC_WIDTH / 4> ni;
typedef dc_v<i64, DC_WIDTH / 8> nl;

template <class T> struct pair { T lo, hi; };
#if DC_WIDTH == 64
typedef nf vf32;
typedef ni vi32;
typedef pair<nd> vf64;
typedef pair<nl> vi64;
#elif DC_WIDTH == 32
typedef pair<nf> vf32;
typedef pair<ni> vi32;
typedef pair<pair<nd>> vf64;
typedef pair<pair<nl>> vi64;
#else
typedef pair<pair<nf>> vf32;
typedef pair<pair<ni>> vi32;
typedef pair<pair<pair<nd>>> vf64;
typedef pair<pair<pair<nl>>> vi64;
#endif
struct vb { vi32 m; };  // 0 or -1 in each lane

// Element type, lane count and the like-shaped integer vector of a native vector.
template <class V> struct dc_info {
  typedef __typeof__(V{}[0] + V{}[0]) elem;
  static const int lanes = sizeof(V) / sizeof(elem);
};
template <class V> struct dc_info<pair<V>> {
  typedef typename dc_info<V>::elem elem;
  static const int lanes = 2 * dc_info<V>::lanes;
};
template <int Size> struct dc_int_of { typedef i32 type; };
template <> struct dc_int_of<8> { typedef i64 type; };
template <class V> using dc_mask =
    dc_v<typename dc_int_of<sizeof(typename dc_info<V>::elem)>::type, dc_info<V>::lanes>;
template <class V, class E> using dc_like = dc_v<E, dc_info<V>::lanes>;

template <class To, class From> DC_INLINE To dc_bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "bit cast between sizes");
  To r;
  __builtin_memcpy(&r, &x, sizeof r);
  return r;
}

// Halves of a native vector.
template <int N> struct dc_half;
#define DC_HALF(N, LO, HI, ALL)                                              \
  template <> struct dc_half<N> {                                            \
    template <class H, class V> DC_INLINE H lo(V v) { return LO(v); }        \
    template <class H, class V> DC_INLINE H hi(V v) { return HI(v); }        \
    template <class V, class H> DC_INLINE V cat(H a, H b) { return ALL(a, b); } \
  };
#define DC_LO16(v) __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7)
#define DC_HI16(v) __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15)
#define DC_CAT16(a, b) \
  __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
#define DC_LO8(v) __builtin_shufflevector(v, v, 0, 1, 2, 3)
#define DC_HI8(v) __builtin_shufflevector(v, v, 4, 5, 6, 7)
#define DC_CAT8(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7)
#define DC_LO4(v) __builtin_shufflevector(v, v, 0, 1)
#define DC_HI4(v) __builtin_shufflevector(v, v, 2, 3)
#define DC_CAT4(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3)
DC_HALF(16, DC_LO16, DC_HI16, DC_CAT16)
DC_HALF(8, DC_LO8, DC_HI8, DC_CAT8)
DC_HALF(4, DC_LO4, DC_HI4, DC_CAT4)
template <class V> using dc_half_v =
    dc_v<typename dc_info<V>::elem, dc_info<V>::lanes / 2>;
template <class V> DC_INLINE dc_half_v<V> dc_lo(V v) {
  return dc_half<dc_info<V>::lanes>::template lo<dc_half_v<V>>(v);
}
template <class V> DC_INLINE dc_half_v<V> dc_hi(V v) {
  return dc_half<dc_info<V>::lanes>::template hi<dc_half_v<V>>(v);
}
template <class H> DC_INLINE auto dc_cat(H a, H b) {
  typedef dc_v<typename dc_info<H>::elem, 2 * dc_info<H>::lanes> V;
  return dc_half<dc_info<V>::lanes>::template cat<V>(a, b);
}


template <class T> struct dc_is_pair { static const bool value = false; };
template <class T> struct dc_is_pair<pair<T>> { static const bool value = true; };

template <class V> struct dc_build {
  typedef typename dc_info<V>::elem E;
  DC_INLINE V splat(E x) { return x - V{}; }  // not V{} + x: that loses the sign of -0
  DC_INLINE V iota(E base, E step) {
    V v{};
    for (int i = 0; i < dc_info<V>::lanes; ++i) v[i] = i;
    return v * step + base;
  }
};
template <class T> struct dc_build<pair<T>> {
  typedef typename dc_info<T>::elem E;
  DC_INLINE pair<T> splat(E x) { return {dc_build<T>::splat(x), dc_build<T>::splat(x)}; }
  DC_INLINE pair<T> iota(E base, E step) {
    return {dc_build<T>::iota(base, step),
            dc_build<T>::iota(base + step * dc_info<T>::lanes, step)};
  }
};
DC_INLINE vf32 dc_splat_f32(float x) { return dc_build<vf32>::splat(x); }
DC_INLINE vf64 dc_splat_f64(double x) { return dc_build<vf64>::splat(x); }
DC_INLINE vi32 dc_splat_i32(i32 x) { return dc_build<vi32>::splat(x); }
DC_INLINE vi64 dc_splat_i64(i64 x) { return dc_build<vi64>::splat(x); }
DC_INLINE vb dc_splat_b1(bool x) { return {dc_splat_i32(-(i32)x)}; }
DC_INLINE vi64 dc_iota_i64(i64 base, i64 step) { return dc_build<vi64>::iota(base, step); }
DC_INLINE vi32 dc_iota_i32(i32 base, i32 step) { return dc_build<vi32>::iota(base, step); }

// Operators on pairs: element by element, like those of native vectors.
#define DC_PAIR_OP(OP)                                                          \
  template <class T> DC_INLINE pair<T> operator OP(pair<T> a, pair<T> b) {      \
    return {a.lo OP b.lo, a.hi OP b.hi};                                        \
  }
DC_PAIR_OP(+) DC_PAIR_OP(-) DC_PAIR_OP(*) DC_PAIR_OP(/)
DC_PAIR_OP(&) DC_PAIR_OP(|) DC_PAIR_OP(^) DC_PAIR_OP(<<) DC_PAIR_OP(>>)
template <class T> DC_INLINE pair<T> operator-(pair<T> a) { return {-a.lo, -a.hi}; }
template <class T> DC_INLINE pair<T> operator~(pair<T> a) { return {~a.lo, ~a.hi}; }

// ----------------------------------------------------------- conversions between shapes
template <class To, class From> DC_INLINE To dc_convert(From v) {
  if constexpr (dc_is_pair<To>::value) {
    typedef decltype(To{}.lo) Part;
    if constexpr (dc_is_pair<From>::value)
      return {dc_convert<Part>(v.lo), dc_convert<Part>(v.hi)};
    else
      return {dc_convert<Part>(dc_lo(v)), dc_convert<Part>(dc_hi(v))};
  } else if constexpr (dc_is_pair<From>::value) {
    typedef dc_half_v<To> Part;
    return dc_cat(dc_convert<Part>(v.lo), dc_convert<Part>(v.hi));
  } else {
    return __builtin_convertvector(v, To);
  }
}

// Float to int truncates; NaN and values out of range give what the x86 conversion gives.
#define DC_TO(NAME, VECTOR, SCALAR)                                                     \
  DC_INLINE VECTOR NAME(vf32 x) { return dc_convert<VECTOR>(x); }                       \
  DC_INLINE VECTOR NAME(vf64 x) { return dc_convert<VECTOR>(x); }                       \
  DC_INLINE VECTOR NAME(vi32 x) { return dc_convert<VECTOR>(x); }                       \
  DC_INLINE VECTOR NAME(vi64 x) { return dc_convert<VECTOR>(x); }                       \
  DC_INLINE VECTOR NAME(vb x) { return dc_convert<VECTOR>(x.m & dc_splat_i32(1)); }     \
  DC_INLINE SCALAR NAME(float x) { return (SCALAR)x; }                                  \
  DC_INLINE SCALAR NAME(double x) { return (SCALAR)x; }                                 \
  DC_INLINE SCALAR NAME(i32 x) { return (SCALAR)x; }                                    \
  DC_INLINE SCALAR NAME(i64 x) { return (SCALAR)x; }                                    \
  DC_INLINE SCALAR NAME(bool x) { return (SCALAR)x; }
DC_TO(dc_to_f32, vf32, float)
DC_TO(dc_to_f64, vf64, double)
DC_TO(dc_to_i32, vi32, i32)
DC_TO(dc_to_i64, vi64, i64)

// ------------------------------------------------------------------ comparisons and masks
DC_INLINE vb dc_as_mask(vi32 m) { return {m}; }
DC_INLINE vb dc_as_mask(vi64 m) { return {dc_convert<vi32>(m)}; }
#define DC_COMPARE(NAME, OP)                                                         \
  DC_INLINE ni dc_raw_##NAME(nf a, nf b) { return (ni)(a OP b); }                             \
  DC_INLINE nl dc_raw_##NAME(nd a, nd b) { return (nl)(a OP b); }                             \
  DC_INLINE ni dc_raw_##NAME(ni a, ni b) { return (ni)(a OP b); }                             \
  DC_INLINE nl dc_raw_##NAME(nl a, nl b) { return (nl)(a OP b); }                             \
  template <class T> DC_INLINE auto dc_raw_##NAME(pair<T> a, pair<T> b) {                     \
    return pair<decltype(dc_raw_##NAME(a.lo, b.lo))>{dc_raw_##NAME(a.lo, b.lo),               \
                                                     dc_raw_##NAME(a.hi, b.hi)};              \
  }                                                                                           \
  DC_INLINE vb dc_##NAME(vf32 a, vf32 b) { return dc_as_mask(dc_raw_##NAME(a, b)); }          \
  DC_INLINE vb dc_##NAME(vf64 a, vf64 b) { return dc_as_mask(dc_raw_##NAME(a, b)); }          \
  DC_INLINE vb dc_##NAME(vi32 a, vi32 b) { return dc_as_mask(dc_raw_##NAME(a, b)); }          \
  DC_INLINE vb dc_##NAME(vi64 a, vi64 b) { return dc_as_mask(dc_raw_##NAME(a, b)); }          \
  DC_INLINE bool dc_##NAME(float a, float b) { return a OP b; }                               \
  DC_INLINE bool dc_##NAME(double a, double b) { return a OP b; }                             \
  DC_INLINE bool dc_##NAME(i32 a, i32 b) { return a OP b; }                                   \
  DC_INLINE bool dc_##NAME(i64 a, i64 b) { return a OP b; }                                   \
  DC_INLINE vb dc_##NAME(vb a, vb b) { return {dc_raw_##NAME(-a.m, -b.m)}; }                  \
  DC_INLINE bool dc_##NAME(bool a, bool b) { return a OP b; }
DC_COMPARE(eq, ==)
DC_COMPARE(ne, !=)
DC_COMPARE(lt, <)
DC_COMPARE(le, <=)
DC_COMPARE(gt, >)
DC_COMPARE(ge, >=)

// Choice by a like-shaped integer mask.
template <class M, class T> DC_INLINE T dc_choose(M m, T a, T b) { return m ? a : b; }
template <class M, class T>
DC_INLINE pair<T> dc_choose(pair<M> m, pair<T> a, pair<T> b) {
  return {dc_choose(m.lo, a.lo, b.lo), dc_choose(m.hi, a.hi, b.hi)};
}
DC_INLINE vf32 dc_where(vb c, vf32 a, vf32 b) { return dc_choose(c.m, a, b); }
DC_INLINE vi32 dc_where(vb c, vi32 a, vi32 b) { return dc_choose(c.m, a, b); }
DC_INLINE vf64 dc_where(vb c, vf64 a, vf64 b) { return dc_choose(dc_convert<vi64>(c.m), a, b); }
DC_INLINE vi64 dc_where(vb c, vi64 a, vi64 b) { return dc_choose(dc_convert<vi64>(c.m), a, b); }
DC_INLINE vb dc_where(vb c, vb a, vb b) { return {(c.m & a.m) | (~c.m & b.m)}; }
DC_INLINE float dc_where(bool c, float a, float b) { return c ? a : b; }
DC_INLINE double dc_where(bool c, double a, double b) { return c ? a : b; }
DC_INLINE i32 dc_where(bool c, i32 a, i32 b) { return c ? a : b; }
DC_INLINE i64 dc_where(bool c, i64 a, i64 b) { return c ? a : b; }
DC_INLINE bool dc_where(bool c, bool a, bool b) { return c ? a : b; }

DC_INLINE vb dc_to_bool(vf32 x) { return dc_ne(x, vf32{}); }
DC_INLINE vb dc_to_bool(vf64 x) { return dc_ne(x, vf64{}); }
DC_INLINE vb dc_to_bool(vi32 x) { return dc_ne(x, vi32{}); }
DC_INLINE vb dc_to_bool(vi64 x) { return dc_ne(x, vi64{}); }
DC_INLINE vb dc_to_bool(vb x) { return x; }
DC_INLINE bool dc_to_bool(float x) { return x != 0; }
DC_INLINE bool dc_to_bool(double x) { return x != 0; }
DC_INLINE bool dc_to_bool(i32 x) { return x != 0; }
DC_INLINE bool dc_to_bool(i64 x) { return x != 0; }
DC_INLINE bool dc_to_bool(bool x) { return x; }

template <class T> DC_INLINE auto dc_to_b1(T x) { return dc_to_bool(x); }

DC_INLINE vb dc_lane_mask(i64 n) {
  return dc_lt(dc_iota_i32(0, 1), dc_splat_i32(n < 0 ? 0 : n > 16 ? 16 : (i32)n));
}

// Bit per lane of a native mask.
DC_INLINE u32 dc_mask_bits(ni m) {
#if defined(DC_AVX512)
  return (unsigned short)__builtin_ia32_cvtd2mask512(m);
#elif DC_WIDTH == 32
  return (u32)__builtin_ia32_movmskps256((nf)m);
#elif defined(__SSE__)
  return (u32)__builtin_ia32_movmskps((nf)m);
#else
  u32 r = 0;
  for (int i = 0; i < dc_info<ni>::lanes; ++i) r |= (u32)(m[i] & 1) << i;
  return r;
#endif
}
template <class T> DC_INLINE u32 dc_mask_bits(pair<T> m) {
  return dc_mask_bits(m.lo) | dc_mask_bits(m.hi) << dc_info<T>::lanes;
}
DC_INLINE bool dc_hany(vb c) { return dc_mask_bits(c.m) != 0; }
DC_INLINE bool dc_hall(vb c) { return dc_mask_bits(c.m) == 0xffff; }
DC_INLINE bool dc_hany(bool c) { return c; }
DC_INLINE bool dc_hall(bool c) { return c; }

// ------------------------------------------------------------------ 16-bit float formats
// Bits of a 16-bit float, in the low half of each lane, to and from float.
template <class I> DC_INLINE dc_like<I, float> dc_bf16_to_f32(I h) {
  return (dc_like<I, float>)(h << 16);
}
template <class F> DC_INLINE dc_like<F, i32> dc_f32_to_bf16(F x) {
  typedef dc_like<F, i32> I;
  typedef dc_like<F, u32> U;
  U u = (U)x;
  U rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return (I)(x == x ? rounded : ((u >> 16) | 0x40u));
}
// After F. Giesen, "Half to float done quick" and "float_to_half_fast3_rtne".
template <class I> DC_INLINE dc_like<I, float> dc_f16_to_f32(I h) {
  typedef dc_like<I, float> F;
  I bits = (h & 0x7fff) << 13;
  I exponent = bits & (0x7c00 << 13);
  bits += (127 - 15) << 23;
  I special = bits + ((128 - 16) << 23);
  I subnormal = (I)((F)(bits + (1 << 23)) - 6.103515625e-05f);
  bits = exponent == (0x7c00 << 13) ? special : bits;
  bits = exponent == 0 ? subnormal : bits;
  return (F)(bits | ((h & 0x8000) << 16));
}
template <class F> DC_INLINE dc_like<F, i32> dc_f32_to_f16(F x) {
  typedef dc_like<F, i32> I;
  typedef dc_like<F, u32> U;
  U u = (U)x;
  I sign = (I)((u >> 16) & 0x8000u);
  I a = (I)(u & 0x7fffffffu);
  I big = a > 0x7f800000 ? I{} + 0x7e00 : I{} + 0x7c00;
  I tiny = (I)((F)a + 0.5f) - 0x3f000000;
  I normal = (a + (i32)0xc8000fff + ((a >> 13) & 1)) >> 13;
  I r = a < (113 << 23) ? tiny : normal;
  return sign | (a >= ((127 + 16) << 23) ? big : r);
}
// Bits of an 8-bit float of 4 exponent and 3 fraction bits. It has no infinity: what is beyond 448
// becomes 448, as in torch.
template <class I> DC_INLINE dc_like<I, float> dc_f8e4m3_to_f32(I h) {
  typedef dc_like<I, float> F;
  I a = h & 0x7f;
  I normal = (a << 20) + ((127 - 7) << 23);
  I subnormal = (I)((F)((a << 20) + ((127 - 6) << 23)) - 0.015625f);
  I bits = a < 8 ? subnormal : normal;
  bits = a == 0x7f ? I{} + 0x7fc00000 : bits;
  return (F)(bits | ((h & 0x80) << 24));
}
template <class F> DC_INLINE dc_like<F, i32> dc_f32_to_f8e4m3(F x) {
  typedef dc_like<F, i32> I;
  typedef dc_like<F, u32> U;
  U u = (U)x;
  I sign = (I)((u >> 24) & 0x80u);
  I a = (I)(u & 0x7fffffffu);
  I tiny = (I)((F)a + 16384.0f) - ((127 + 14) << 23);
  I normal = (a + (i32)0xc407ffff + ((a >> 20) & 1)) >> 20;
  I r = a < ((127 - 6) << 23) ? tiny : normal;
  r = r > 0x7e ? I{} + 0x7e : r;
  return sign | (a > 0x7f800000 ? I{} + 0x7f : r);
}
#define DC_MAP1(NAME) \
  template <class T> DC_INLINE auto NAME(pair<T> a) { \
    return pair<decltype(NAME(a.lo))>{NAME(a.lo), NAME(a.hi)}; \
  }
DC_MAP1(dc_bf16_to_f32)
DC_MAP1(dc_f32_to_bf16)
DC_MAP1(dc_f16_to_f32)
DC_MAP1(dc_f32_to_f16)
DC_MAP1(dc_f8e4m3_to_f32)
DC_MAP1(dc_f32_to_f8e4m3)
typedef dc_v<float, 4> dc_f4;
typedef dc_v<i32, 4> dc_i4;
DC_INLINE vf32 dc_round_bf16(vf32 x) { return dc_bf16_to_f32(dc_f32_to_bf16(x)); }
DC_INLINE vf32 dc_round_f16(vf32 x) { return dc_f16_to_f32(dc_f32_to_f16(x)); }
DC_INLINE float dc_round_bf16(float x) { return dc_bf16_to_f32(dc_f32_to_bf16(x - dc_f4{}))[0]; }
DC_INLINE float dc_round_f16(float x) { return dc_f16_to_f32(dc_f32_to_f16(x - dc_f4{}))[0]; }
DC_INLINE vf32 dc_round_f8e4m3(vf32 x) { return dc_f8e4m3_to_f32(dc_f32_to_f8e4m3(x)); }
DC_INLINE float dc_round_f8e4m3(float x) {
  return dc_f8e4m3_to_f32(dc_f32_to_f8e4m3(x - dc_f4{}))[0];
}

DC_INLINE vi32 dc_wrap_i8(vi32 x) { return (x << dc_splat_i32(24)) >> dc_splat_i32(24); }
DC_INLINE vi32 dc_wrap_i16(vi32 x) { return (x << dc_splat_i32(16)) >> dc_splat_i32(16); }
DC_INLINE i32 dc_wrap_i8(i32 x) { return (i8)x; }
DC_INLINE i32 dc_wrap_i16(i32 x) { return (i16)x; }
DC_INLINE vi32 dc_wrap_u8(vi32 x) { return x & dc_splat_i32(255); }
DC_INLINE i32 dc_wrap_u8(i32 x) { return x & 255; }

// --------------------------------------------------------------------------------- memory
// A pointer of any alignment; `n` counts lanes, a stride counts elements.
// Pairs by halves: GCC copies a whole one through general registers.
template <class T> DC_INLINE T dc_raw_load(const void *p) {
  if constexpr (dc_is_pair<T>::value) {
    typedef decltype(T{}.lo) Part;
    return {dc_raw_load<Part>(p), dc_raw_load<Part>((const char *)p + sizeof(Part))};
  } else {
    T v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
}
template <class T> DC_INLINE void dc_raw_store(void *p, T v) {
  if constexpr (dc_is_pair<T>::value) {
    dc_raw_store(p, v.lo);
    dc_raw_store((char *)p + sizeof v.lo, v.hi);
  } else {
    __builtin_memcpy(p, &v, sizeof v);
  }
}
// Narrow integers, one widening step at a time: GCC scalarises longer ones.
template <class V, class S> DC_INLINE V dc_load_narrow(const S *p) {
  if constexpr (dc_is_pair<V>::value) {
    typedef decltype(V{}.lo) Part;
    return {dc_load_narrow<Part>(p), dc_load_narrow<Part>(p + dc_info<Part>::lanes)};
  } else {
    dc_v<S, dc_info<V>::lanes> raw;
    __builtin_memcpy(&raw, p, sizeof raw);
    if constexpr (sizeof(S) == 1) {
      auto wide = __builtin_convertvector(raw, dc_like<V, i16>);
      return __builtin_convertvector(wide, V);
    } else {
      return __builtin_convertvector(raw, V);
    }
  }
}
template <class S, class V> DC_INLINE void dc_store_narrow(S *p, V v) {
  if constexpr (dc_is_pair<V>::value) {
    dc_store_narrow(p, v.lo);
    dc_store_narrow(p + dc_info<V>::lanes / 2, v.hi);
  } else {
    auto raw = __builtin_convertvector(v, dc_like<V, i16>);
    if constexpr (sizeof(S) == 1) {
      auto bytes = __builtin_convertvector(raw, dc_like<V, i8>);
      __builtin_memcpy(p, &bytes, sizeof bytes);
    } else {
      __builtin_memcpy(p, &raw, sizeof raw);
    }
  }
}
DC_INLINE vf32 dc_load(const float *p) { return dc_raw_load<vf32>(p); }
DC_INLINE vf64 dc_load(const double *p) { return dc_raw_load<vf64>(p); }
DC_INLINE vi32 dc_load(const i32 *p) { return dc_raw_load<vi32>(p); }
DC_INLINE vi64 dc_load(const i64 *p) { return dc_raw_load<vi64>(p); }
DC_INLINE vi32 dc_load(const i16 *p) { return dc_load_narrow<vi32>(p); }
DC_INLINE vi32 dc_load(const i8 *p) { return dc_load_narrow<vi32>(p); }
DC_INLINE vi32 dc_load(const u8 *p) { return dc_load_narrow<vi32>(p); }
DC_INLINE vb dc_load(const bool8 *p) { return dc_to_bool(dc_load_narrow<vi32>(&p->bits)); }
DC_INLINE vf32 dc_load(const bf16 *p) { return dc_bf16_to_f32(dc_load_narrow<vi32>(&p->bits)); }
DC_INLINE vf32 dc_load(const f16 *p) { return dc_f16_to_f32(dc_load_narrow<vi32>(&p->bits)); }
DC_INLINE vf32 dc_load(const f8e4m3 *p) { return dc_f8e4m3_to_f32(dc_load_narrow<vi32>(&p->bits)); }

DC_INLINE float dc_load1(const float *p) { return *p; }
DC_INLINE double dc_load1(const double *p) { return *p; }
DC_INLINE i32 dc_load1(const i32 *p) { return *p; }
DC_INLINE i64 dc_load1(const i64 *p) { return *p; }
DC_INLINE i32 dc_load1(const i16 *p) { return *p; }
DC_INLINE i32 dc_load1(const i8 *p) { return *p; }
DC_INLINE i32 dc_load1(const u8 *p) { return *p; }
DC_INLINE bool dc_load1(const bool8 *p) { return p->bits != 0; }
DC_INLINE float dc_load1(const bf16 *p) { return dc_bits<float>((u32)p->bits << 16); }
DC_INLINE float dc_load1(const f16 *p) { return dc_f16_to_f32(dc_i4{} + (i32)p->bits)[0]; }
DC_INLINE float dc_load1(const f8e4m3 *p) { return dc_f8e4m3_to_f32(dc_i4{} + (i32)p->bits)[0]; }

DC_INLINE void dc_store(float *p, vf32 v) { dc_raw_store(p, v); }
DC_INLINE void dc_store(double *p, vf64 v) { dc_raw_store(p, v); }
DC_INLINE void dc_store(i32 *p, vi32 v) { dc_raw_store(p, v); }
DC_INLINE void dc_store(i64 *p, vi64 v) { dc_raw_store(p, v); }
DC_INLINE void dc_store(i16 *p, vi32 v) { dc_store_narrow(p, v); }
DC_INLINE void dc_store(i8 *p, vi32 v) { dc_store_narrow(p, v); }
DC_INLINE void dc_store(u8 *p, vi32 v) { dc_store_narrow(p, v); }
DC_INLINE void dc_store(bool8 *p, vb v) { dc_store_narrow(&p->bits, -v.m); }
DC_INLINE void dc_store(bf16 *p, vf32 v) { dc_store_narrow(&p->bits, dc_f32_to_bf16(v)); }
DC_INLINE void dc_store(f16 *p, vf32 v) { dc_store_narrow(&p->bits, dc_f32_to_f16(v)); }
DC_INLINE void dc_store(f8e4m3 *p, vf32 v) { dc_store_narrow(&p->bits, dc_f32_to_f8e4m3(v)); }

DC_INLINE void dc_store1(float *p, float v) { *p = v; }
DC_INLINE void dc_store1(double *p, double v) { *p = v; }
DC_INLINE void dc_store1(i32 *p, i32 v) { *p = v; }
DC_INLINE void dc_store1(i64 *p, i64 v) { *p = v; }
DC_INLINE void dc_store1(i16 *p, i32 v) { *p = (i16)v; }
DC_INLINE void dc_store1(i8 *p, i32 v) { *p = (i8)v; }
DC_INLINE void dc_store1(u8 *p, i32 v) { *p = (u8)v; }
DC_INLINE void dc_store1(bool8 *p, bool v) { p->bits = v; }
DC_INLINE void dc_store1(bf16 *p, float v) {
  p->bits = (unsigned short)dc_f32_to_bf16(v - dc_f4{})[0];
}
DC_INLINE void dc_store1(f16 *p, float v) {
  p->bits = (unsigned short)dc_f32_to_f16(v - dc_f4{})[0];
}
DC_INLINE void dc_store1(f8e4m3 *p, float v) {
  p->bits = (unsigned char)dc_f32_to_f8e4m3(v - dc_f4{})[0];
}

template <class S> using dc_register = decltype(dc_load((const S *)0));
template <class S> DC_INLINE dc_register<S> dc_loads(const S *p, i64 stride) {
  S t[DC_LANES];
  for (int i = 0; i < DC_LANES; ++i) t[i] = p[i * stride];
  return dc_load(t);
}
template <class S> DC_INLINE dc_register<S> dc_loadsn(const S *p, i64 stride, i64 n) {
  S t[DC_LANES] = {};
  for (i64 i = 0; i < n; ++i) t[i] = p[i * stride];
  return dc_load(t);
}
template <class S> DC_INLINE void dc_stores(S *p, i64 stride, dc_register<S> v, i64 n) {
  S t[DC_LANES];
  dc_store(t, v);
  for (i64 i = 0; i < n; ++i) p[i * stride] = t[i];
}
template <class S> DC_INLINE dc_register<S> dc_gather(const S *p, vi64 index, vb mask) {
  S t[DC_LANES] = {};
  i64 at[DC_LANES];
  dc_store(at, index);
  if (dc_hall(mask)) {
    for (int i = 0; i < DC_LANES; ++i) t[i] = p[at[i]];
    return dc_load(t);
  }
  u32 bits = dc_mask_bits(mask.m);
  for (int i = 0; i < DC_LANES; ++i)
    if (bits >> i & 1) t[i] = p[at[i]];
  return dc_load(t);
}
#if defined(DC_AVX512) && !defined(__clang__)
// Between a narrow storage type, widened to i32, and its register type.
template <class S> struct dc_raw_of { typedef S type; };
template <> struct dc_raw_of<bool8> { typedef u8 type; };
template <> struct dc_raw_of<bf16> { typedef unsigned short type; };
template <> struct dc_raw_of<f16> { typedef unsigned short type; };
template <> struct dc_raw_of<f8e4m3> { typedef u8 type; };
template <class S> DC_INLINE vi32 dc_decode(const S *, vi32 v) { return v; }
DC_INLINE vb dc_decode(const bool8 *, vi32 v) { return dc_to_bool(v); }
DC_INLINE vf32 dc_decode(const bf16 *, vi32 v) { return dc_bf16_to_f32(v); }
DC_INLINE vf32 dc_decode(const f16 *, vi32 v) { return dc_f16_to_f32(v); }
DC_INLINE vf32 dc_decode(const f8e4m3 *, vi32 v) { return dc_f8e4m3_to_f32(v); }
template <class S> DC_INLINE vi32 dc_encode(const S *, vi32 v) { return v; }
DC_INLINE vi32 dc_encode(const bool8 *, vb v) { return -v.m; }
DC_INLINE vi32 dc_encode(const bf16 *, vf32 v) { return dc_f32_to_bf16(v); }
DC_INLINE vi32 dc_encode(const f16 *, vf32 v) { return dc_f32_to_f16(v); }
DC_INLINE vi32 dc_encode(const f8e4m3 *, vf32 v) { return dc_f32_to_f8e4m3(v); }
typedef dc_v<i16, 16> dc_shorts;
typedef dc_v<char, 16> dc_bytes;
template <class S> DC_INLINE dc_register<S> dc_loadn(const S *p, i64 n) {
  unsigned short k = (unsigned short)((1u << (n & 31)) - 1);
  typedef dc_v<typename dc_raw_of<S>::type, 16> Raw;
  if constexpr (sizeof(S) == 4) {
    return (dc_register<S>)__builtin_ia32_loaddqusi512_mask((const i32 *)p, ni{}, k);
  } else if constexpr (sizeof(S) == 8) {
    typedef decltype(dc_register<S>{}.lo) Part;
    return {(Part)__builtin_ia32_loaddqudi512_mask((const i64 *)p, nl{}, (u8)k),
            (Part)__builtin_ia32_loaddqudi512_mask((const i64 *)p + 8, nl{}, (u8)(k >> 8))};
  } else if constexpr (sizeof(S) == 2) {
    Raw v = (Raw)__builtin_ia32_loaddquhi256_mask((const i16 *)p, dc_shorts{}, k);
    return dc_decode(p, __builtin_convertvector(v, ni));
  } else {
    Raw v = (Raw)__builtin_ia32_loaddquqi128_mask((const char *)p, dc_bytes{}, k);
    return dc_decode(p, __builtin_convertvector(__builtin_convertvector(v, dc_shorts), ni));
  }
}
template <class S> DC_INLINE void dc_storen(S *p, dc_register<S> v, i64 n) {
  unsigned short k = (unsigned short)((1u << (n & 31)) - 1);
  if constexpr (sizeof(S) == 4) {
    __builtin_ia32_storedqusi512_mask((i32 *)p, (ni)v, k);
  } else if constexpr (sizeof(S) == 8) {
    __builtin_ia32_storedqudi512_mask((i64 *)p, (nl)v.lo, (u8)k);
    __builtin_ia32_storedqudi512_mask((i64 *)p + 8, (nl)v.hi, (u8)(k >> 8));
  } else {
    dc_shorts raw = __builtin_convertvector(dc_encode(p, v), dc_shorts);
    if constexpr (sizeof(S) == 2)
      __builtin_ia32_storedquhi256_mask((i16 *)p, raw, k);
    else
      __builtin_ia32_storedquqi128_mask((char *)p, __builtin_convertvector(raw, dc_bytes), k);
  }
}
#else
template <class S> DC_INLINE dc_register<S> dc_loadn(const S *p, i64 n) {
  S t[DC_LANES] = {};
  for (i64 i = 0; i < n; ++i) t[i] = p[i];
  return dc_load(t);
}
template <class S> DC_INLINE void dc_storen(S *p, dc_register<S> v, i64 n) {
  S t[DC_LANES];
  dc_store(t, v);
  for (i64 i = 0; i < n; ++i) p[i] = t[i];
}
#endif
// Strided stores of all lanes, and single lanes.
template <class S> DC_INLINE void dc_stores(S *p, i64 stride, dc_register<S> v) {
  dc_stores(p, stride, v, DC_LANES);
}
template <class V> DC_INLINE typename dc_info<V>::elem dc_lane(V v, int i) {
  typename dc_info<V>::elem t[DC_LANES];
  __builtin_memcpy(t, &v, sizeof v);
  return t[i];
}
DC_INLINE bool dc_lane(vb v, int i) { return dc_mask_bits(v.m) >> i & 1; }

// ---------------------------------------------------------------------- how ops are defined
// dc_x(pair) maps over halves; dc_x(native) and dc_x(scalar) hold the algorithm.
#define DC_MAP2(NAME)                                                \
  template <class T> DC_INLINE auto NAME(pair<T> a, pair<T> b) {     \
    return pair<decltype(NAME(a.lo, b.lo))>{NAME(a.lo, b.lo), NAME(a.hi, b.hi)}; \
  }
// One template for native vectors and scalars alike, mapped over pairs.
#define DC_GENERIC1(NAME, EXPR)                              \
  template <class T> DC_INLINE T NAME(T a) { return EXPR; }  \
  DC_MAP1(NAME)
#define DC_GENERIC2(NAME, EXPR)                                  \
  template <class T> DC_INLINE T NAME(T a, T b) { return EXPR; } \
  DC_MAP2(NAME)
// A float algorithm `KERNEL` on native vectors; a scalar is a vector of four.
#define DC_FLOAT1(NAME, KERNEL)                                       \
  DC_INLINE nf NAME(nf a) { return KERNEL(a); }                       \
  DC_MAP1(NAME)                                                       \
  DC_INLINE float NAME(float a) { return KERNEL(a - dc_f4{})[0]; }
#define DC_FLOAT2(NAME, KERNEL)                                                              \
  DC_INLINE nf NAME(nf a, nf b) { return KERNEL(a, b); }                                     \
  DC_MAP2(NAME)                                                                              \
  DC_INLINE float NAME(float a, float b) { return KERNEL(a - dc_f4{}, b - dc_f4{})[0]; }
// Lane by lane through a scalar expression in x (and y).
#define DC_LANES1(NAME, V, E, EXPR)                                                     \
  DC_INLINE E NAME(E x) { return EXPR; }                                                \
  DC_INLINE V NAME(V a) {                                                               \
    E t[sizeof(V) / sizeof(E)];                                                         \
    __builtin_memcpy(t, &a, sizeof t);                                                  \
    for (E &x : t) x = EXPR;                                                            \
    return dc_raw_load<V>(t);                                                           \
  }
#define DC_LANES2(NAME, V, E, EXPR)                                                     \
  DC_INLINE E NAME(E x, E y) { return EXPR; }                                           \
  DC_INLINE V NAME(V a, V b) {                                                          \
    E t[sizeof(V) / sizeof(E)], u[sizeof(V) / sizeof(E)];                               \
    __builtin_memcpy(t, &a, sizeof t);                                                  \
    __builtin_memcpy(u, &b, sizeof u);                                                  \
    for (unsigned i = 0; i < sizeof(V) / sizeof(E); ++i) {                              \
      E x = t[i], y = u[i];                                                             \
      t[i] = EXPR;                                                                      \
    }                                                                                   \
    return dc_raw_load<V>(t);                                                           \
  }

// ------------------------------------------------------------------------------ arithmetic
DC_GENERIC2(dc_add, a + b)
DC_GENERIC2(dc_sub, a - b)
DC_GENERIC2(dc_mul, a * b)
DC_GENERIC2(dc_div, a / b)
DC_GENERIC1(dc_neg, -a)
DC_GENERIC1(dc_square, a * a)
template <class T> DC_INLINE T dc_fma(T a, T b, T c) { return a * b + c; }

DC_INLINE nf dc_abs(nf a) { return (nf)((ni)a & 0x7fffffff); }
DC_INLINE nd dc_abs(nd a) { return (nd)((nl)a & 0x7fffffffffffffffLL); }
DC_INLINE ni dc_abs(ni a) { return a < 0 ? -a : a; }
DC_INLINE nl dc_abs(nl a) { return a < 0 ? -a : a; }
DC_MAP1(dc_abs)
DC_INLINE float dc_abs(float a) { return __builtin_fabsf(a); }
DC_INLINE double dc_abs(double a) { return __builtin_fabs(a); }
DC_INLINE i32 dc_abs(i32 a) { return a < 0 ? -a : a; }
DC_INLINE i64 dc_abs(i64 a) { return a < 0 ? -a : a; }

DC_INLINE nf dc_copysign(nf a, nf b) {
  return (nf)(((ni)a & 0x7fffffff) | ((ni)b & (i32)0x80000000));
}
DC_INLINE nd dc_copysign(nd a, nd b) {
  return (nd)(((nl)a & 0x7fffffffffffffffLL) | ((nl)b & (i64)0x8000000000000000ULL));
}
DC_MAP2(dc_copysign)
DC_INLINE float dc_copysign(float a, float b) { return __builtin_copysignf(a, b); }
DC_INLINE double dc_copysign(double a, double b) { return __builtin_copysign(a, b); }

// NaN in either operand wins (maximum, minimum) or loses (fmax, fmin).
DC_GENERIC2(dc_maximum, ((a > b) | (a != a)) ? a : b)
DC_GENERIC2(dc_minimum, ((a < b) | (a != a)) ? a : b)
DC_GENERIC2(dc_fmax, ((a > b) | (b != b)) ? a : b)
DC_GENERIC2(dc_fmin, ((a < b) | (b != b)) ? a : b)
DC_INLINE vb dc_maximum(vb a, vb b) { return {a.m | b.m}; }
DC_INLINE vb dc_minimum(vb a, vb b) { return {a.m & b.m}; }
DC_INLINE vb dc_mul(vb a, vb b) { return {a.m & b.m}; }
DC_INLINE vb dc_add(vb a, vb b) { return {a.m | b.m}; }
DC_INLINE bool dc_add(bool a, bool b) { return a | b; }

DC_GENERIC1(dc_sign, a > 0 ? T{} + 1 : (a < 0 ? T{} - 1 : T{}))
DC_GENERIC1(dc_recip, 1 / a)
DC_GENERIC1(dc_relu, a < 0 ? T{} : a)

// -------------------------------------------------------------------- logic and bit patterns
DC_INLINE vb dc_bitwise_and(vb a, vb b) { return {a.m & b.m}; }
DC_INLINE vb dc_bitwise_or(vb a, vb b) { return {a.m | b.m}; }
DC_INLINE vb dc_bitwise_xor(vb a, vb b) { return {a.m ^ b.m}; }
DC_INLINE vb dc_bitwise_not(vb a) { return {~a.m}; }
DC_INLINE bool dc_bitwise_not(bool a) { return !a; }
DC_GENERIC2(dc_bitwise_and, a & b)
DC_GENERIC2(dc_bitwise_or, a | b)
DC_GENERIC2(dc_bitwise_xor, a ^ b)
DC_GENERIC1(dc_bitwise_not, ~a)
template <class T> DC_INLINE auto dc_logical_and(T a, T b) {
  return dc_bitwise_and(dc_to_bool(a), dc_to_bool(b));
}
template <class T> DC_INLINE auto dc_logical_or(T a, T b) {
  return dc_bitwise_or(dc_to_bool(a), dc_to_bool(b));
}
template <class T> DC_INLINE auto dc_logical_xor(T a, T b) {
  return dc_bitwise_xor(dc_to_bool(a), dc_to_bool(b));
}
template <class T> DC_INLINE auto dc_logical_not(T a) { return dc_bitwise_not(dc_to_bool(a)); }
// Shifts past the width (or by a negative count) give 0, or the sign for right shifts.
#define DC_SHIFTS(T, U, BITS)                                                           \
  DC_INLINE T dc_shl(T a, T b) {                                                        \
    return ((b < 0) | (b >= BITS)) ? T{} : (T)((U)a << (U)(b & (BITS - 1)));            \
  }                                                                                     \
  DC_INLINE T dc_shr(T a, T b) {                                                        \
    return a >> (((b < 0) | (b >= BITS)) ? T{} + (BITS - 1) : b);                       \
  }
typedef dc_v<u32, DC_WIDTH / 4> dc_u32;
typedef dc_v<u64, DC_WIDTH / 8> dc_u64;
DC_SHIFTS(ni, dc_u32, 32)
DC_SHIFTS(nl, dc_u64, 64)
DC_SHIFTS(i32, u32, 32)
DC_SHIFTS(i64, u64, 64)
DC_MAP2(dc_shl)
DC_MAP2(dc_shr)

// -------------------------------------------------------------------------- classification
#define DC_CLASSIFY(F, I, MAGNITUDE, INFINITY_BITS)                                        \
  DC_INLINE I dc_raw_isnan(F a) { return (I)(a != a); }                                       \
  DC_INLINE I dc_raw_isinf(F a) { return (I)(((I)a & MAGNITUDE) == INFINITY_BITS); }          \
  DC_INLINE I dc_raw_isfinite(F a) { return (I)(((I)a & MAGNITUDE) < INFINITY_BITS); }        \
  DC_INLINE I dc_raw_signbit(F a) { return (I)((I)a < 0); }
DC_CLASSIFY(nf, ni, 0x7fffffff, 0x7f800000)
DC_CLASSIFY(nd, nl, 0x7fffffffffffffffLL, 0x7ff0000000000000LL)
#define DC_PREDICATE(NAME, SCALAR)                                                    \
  DC_MAP1(dc_raw_##NAME)                                                              \
  DC_INLINE vb dc_##NAME(vf32 a) { return dc_as_mask(dc_raw_##NAME(a)); }             \
  DC_INLINE vb dc_##NAME(vf64 a) { return dc_as_mask(dc_raw_##NAME(a)); }             \
  DC_INLINE bool dc_##NAME(float a) { return SCALAR; }                                \
  DC_INLINE bool dc_##NAME(double a) { return SCALAR; }
DC_PREDICATE(isnan, a != a)
DC_PREDICATE(isinf, __builtin_isinf(a))
DC_PREDICATE(isfinite, __builtin_isfinite(a))
DC_PREDICATE(signbit, __builtin_signbit(a))
template <class V> DC_INLINE vb dc_isposinf(V a) {
  return dc_bitwise_and(dc_isinf(a), dc_gt(a, V{}));
}
template <class V> DC_INLINE vb dc_isneginf(V a) {
  return dc_bitwise_and(dc_isinf(a), dc_lt(a, V{}));
}
DC_INLINE bool dc_isposinf(float a) { return a == __builtin_inff(); }
DC_INLINE bool dc_isposinf(double a) { return a == __builtin_inf(); }
DC_INLINE bool dc_isneginf(float a) { return a == -__builtin_inff(); }
DC_INLINE bool dc_isneginf(double a) { return a == -__builtin_inf(); }
#define DC_NEVER(NAME, WHAT)                                                              \
  DC_INLINE vb NAME(vi32) { return dc_splat_b1(WHAT); }                                   \
  DC_INLINE vb NAME(vi64) { return dc_splat_b1(WHAT); }                                   \
  DC_INLINE bool NAME(i32) { return WHAT; }                                               \
  DC_INLINE bool NAME(i64) { return WHAT; }
DC_NEVER(dc_isnan, false)
DC_NEVER(dc_isinf, false)
DC_NEVER(dc_isposinf, false)
DC_NEVER(dc_isneginf, false)
DC_NEVER(dc_isfinite, true)
DC_INLINE vb dc_signbit(vi32 a) { return dc_lt(a, vi32{}); }
DC_INLINE vb dc_signbit(vi64 a) { return dc_lt(a, vi64{}); }
DC_INLINE bool dc_signbit(i32 a) { return a < 0; }
DC_INLINE bool dc_signbit(i64 a) { return a < 0; }

// -------------------------------------------------------------------------------- rounding
#define DC_ROUND(NAME, F32, F64)                                                        \
  DC_INLINE nf NAME(nf a) {                                                             \
    for (int i = 0; i < dc_info<nf>::lanes; ++i) a[i] = F32(a[i]);                      \
    return a;                                                                           \
  }                                                                                     \
  DC_INLINE nd NAME(nd a) {                                                             \
    for (int i = 0; i < dc_info<nd>::lanes; ++i) a[i] = F64(a[i]);                      \
    return a;                                                                           \
  }                                                                                     \
  DC_INLINE dc_f4 dc_four_##NAME(dc_f4 a) {                                             \
    for (int i = 0; i < 4; ++i) a[i] = F32(a[i]);                                       \
    return a;                                                                           \
  }                                                                                     \
  DC_MAP1(NAME)                                                                         \
  DC_INLINE float NAME(float a) { return F32(a); }                                      \
  DC_INLINE double NAME(double a) { return F64(a); }
DC_ROUND(dc_floor, __builtin_floorf, __builtin_floor)
DC_ROUND(dc_ceil, __builtin_ceilf, __builtin_ceil)
DC_ROUND(dc_trunc, __builtin_truncf, __builtin_trunc)
DC_ROUND(dc_round, __builtin_rintf, __builtin_rint)
DC_ROUND(dc_sqrt, __builtin_sqrtf, __builtin_sqrt)
#define DC_WHOLE(T)                                        \
  DC_INLINE T dc_floor(T a) { return a; }                  \
  DC_INLINE T dc_ceil(T a) { return a; }                   \
  DC_INLINE T dc_trunc(T a) { return a; }                  \
  DC_INLINE T dc_round(T a) { return a; }
DC_WHOLE(vi32)
DC_WHOLE(vi64)
DC_WHOLE(i32)
DC_WHOLE(i64)
template <class T> DC_INLINE T dc_frac(T a) { return a - dc_trunc(a); }
DC_GENERIC1(dc_rsqrt, 1 / dc_sqrt(a))

DC_INLINE vf32 dc_one(vf32) { return dc_splat_f32(1); }
DC_INLINE vf64 dc_one(vf64) { return dc_splat_f64(1); }
DC_INLINE vi32 dc_one(vi32) { return dc_splat_i32(1); }
DC_INLINE vi64 dc_one(vi64) { return dc_splat_i64(1); }
DC_INLINE float dc_one(float) { return 1; }
DC_INLINE double dc_one(double) { return 1; }
DC_INLINE i32 dc_one(i32) { return 1; }
DC_INLINE i64 dc_one(i64) { return 1; }

// -------------------------------------------------------------------------------- division
// Integers: a zero divisor gives 0 (eager raises), and the smallest value over -1 wraps.
DC_INLINE i64 dc_trunc_div(i64 a, i64 b) {
  return b == 0 ? 0 : b == -1 ? (i64)(0 - (u64)a) : a / b;
}
DC_INLINE i32 dc_trunc_div(i32 a, i32 b) {
  return b == 0 ? 0 : b == -1 ? (i32)(0 - (u32)a) : a / b;
}
DC_INLINE vi32 dc_trunc_div(vi32 a, vi32 b) {  // exact: doubles hold every i32
  vi32 q = dc_to_i32(dc_to_f64(a) / dc_to_f64(b));
  return dc_where(dc_eq(b, vi32{}), vi32{}, q);
}
DC_INLINE vi64 dc_trunc_div(vi64 a, vi64 b) {
  i64 x[DC_LANES], y[DC_LANES];
  dc_store(x, a);
  dc_store(y, b);
  for (int i = 0; i < DC_LANES; ++i) x[i] = dc_trunc_div(x[i], y[i]);
  return dc_load(x);
}
template <class T> DC_INLINE T dc_int_fmod(T a, T b) { return a - dc_trunc_div(a, b) * b; }
template <class T> DC_INLINE T dc_int_floordiv(T a, T b) {
  T q = dc_trunc_div(a, b);
  T r = a - q * b;
  auto fix = dc_bitwise_and(dc_ne(r, T{}), dc_signbit(dc_bitwise_xor(r, b)));
  return q - dc_where(fix, T(dc_one(r)), T{});
}
template <class T> DC_INLINE T dc_int_remainder(T a, T b) {
  T r = dc_int_fmod(a, b);
  auto fix = dc_bitwise_and(dc_ne(r, T{}), dc_signbit(dc_bitwise_xor(r, b)));
  return r + dc_where(fix, b, T{});
}
DC_LANES2(dc_fmod, nd, double, __builtin_fmod(x, y))
DC_MAP2(dc_fmod)
// Exact: below 2^28 the quotient in double truncates right; other lanes go through libm.
DC_INLINE vf32 dc_fmod(vf32 a, vf32 b) {
  vf64 x = dc_to_f64(a), y = dc_to_f64(b);
  vf64 q = dc_trunc(x / y);
  vf32 r = dc_to_f32(x - q * y);
  vb easy = dc_bitwise_and(dc_lt(dc_abs(q), dc_splat_f64(268435456.0)), dc_isfinite(b));
  if (!dc_hall(easy)) {
    float s[DC_LANES], t[DC_LANES];
    dc_store(s, a);
    dc_store(t, b);
    for (int i = 0; i < DC_LANES; ++i) s[i] = __builtin_fmodf(s[i], t[i]);
    return dc_load(s);
  }
  return dc_copysign(r, a);
}
DC_INLINE float dc_fmod(float a, float b) { return __builtin_fmodf(a, b); }
template <class T> DC_INLINE T dc_float_remainder(T a, T b) {
  T r = dc_fmod(a, b);
  auto fix = dc_bitwise_and(dc_ne(r, T{}), dc_ne(dc_lt(b, T{}), dc_lt(r, T{})));
  return dc_where(fix, r + b, r);
}
// The rule of torch's div_floor_floating: exact for exact quotients, signed zeros kept.
template <class T> DC_INLINE T dc_float_floordiv(T a, T b) {
  T r = dc_fmod(a, b);
  T q = (a - r) / b;
  auto fix = dc_bitwise_and(dc_ne(r, T{}), dc_ne(dc_lt(b, T{}), dc_lt(r, T{})));
  q = dc_where(fix, q - dc_one(q), q);
  T down = dc_floor(q);
  T half = dc_one(q) / (dc_one(q) + dc_one(q));
  down = dc_where(dc_gt(q - down, half), down + dc_one(q), down);
  down = dc_where(dc_ne(q, T{}), down, dc_copysign(T{}, a / b));
  return dc_where(dc_eq(b, T{}), a / b, down);
}
#define DC_DIVISION(T, KIND)                                                             \
  DC_INLINE T dc_floordiv(T a, T b) { return dc_##KIND##_floordiv(a, b); }               \
  DC_INLINE T dc_remainder(T a, T b) { return dc_##KIND##_remainder(a, b); }
DC_DIVISION(vf32, float)
DC_DIVISION(vf64, float)
DC_DIVISION(float, float)
DC_DIVISION(double, float)
DC_DIVISION(vi32, int)
DC_DIVISION(vi64, int)
DC_DIVISION(i32, int)
DC_DIVISION(i64, int)
DC_INLINE vi32 dc_fmod(vi32 a, vi32 b) { return dc_int_fmod(a, b); }
DC_INLINE vi64 dc_fmod(vi64 a, vi64 b) { return dc_int_fmod(a, b); }
DC_INLINE i32 dc_fmod(i32 a, i32 b) { return dc_int_fmod(a, b); }
DC_INLINE i64 dc_fmod(i64 a, i64 b) { return dc_int_fmod(a, b); }
DC_INLINE vf32 dc_trunc_div(vf32 a, vf32 b) { return dc_trunc(a / b); }
DC_INLINE vf64 dc_trunc_div(vf64 a, vf64 b) { return dc_trunc(a / b); }
DC_INLINE float dc_trunc_div(float a, float b) { return dc_trunc(a / b); }
DC_INLINE double dc_trunc_div(double a, double b) { return dc_trunc(a / b); }

// ----------------------------------------- f64 functions: libm, lane by lane (before the f32
// ones: pairs map to what is declared by then)
#define DC_LIBM1(NAME)                                                      \
  DC_LANES1(dc_##NAME, nd, double, __builtin_##NAME(x))
DC_LIBM1(exp) DC_LIBM1(exp2) DC_LIBM1(expm1)
DC_LIBM1(log) DC_LIBM1(log2) DC_LIBM1(log10) DC_LIBM1(log1p)
DC_LIBM1(tanh) DC_LIBM1(erf) DC_LIBM1(sin) DC_LIBM1(cos) DC_LIBM1(tan)
DC_LANES1(dc_sigmoid, nd, double, 1 / (1 + __builtin_exp(-x)))

// --------------------------------------------------------------- exponentials (f32 vectors)
// Polynomials are minimax fits by Remez exchange; bounds are measured against a 50-digit
// reference by tests/numerics/test_prelude.py.
template <class F> DC_INLINE dc_like<F, i32> dc_to_nearest(F x) {  // |x| < 2^22
  return (dc_like<F, i32>)(x + 12582912.0f) - 0x4b400000;
}
// p * 2^n for p in [0.5, 2], with gradual underflow.
template <class F> DC_INLINE F dc_scale(F p, dc_like<F, i32> n) {
  dc_like<F, i32> half = n >> 1;
  return p * (F)((half + 127) << 23) * (F)((n - half + 127) << 23);
}
// (e^r - 1 - r) / r^2 for |r| <= ln2 / 2, relative error of e^r 2^-28.2.
template <class F> DC_INLINE F dc_exp_tail(F r) {
  F p = r * 0.0013950616f + 0.008368953f;
  p = p * r + 0.041666202f;
  p = p * r + 0.16666518f;
  return p * r + 0.5f;
}
template <class F> DC_INLINE F dc_clamp(F x, float low, float high) {  // NaN stays
  x = x < low ? F{} + low : x;
  return x > high ? F{} + high : x;
}
template <class F> struct dc_exp_parts { F r; dc_like<F, i32> n; };
// x = n ln2 + r.
template <class F> DC_INLINE dc_exp_parts<F> dc_reduce_exp(F x) {
  F t = x * 1.44269504f + 12582912.0f;
  F n = t - 12582912.0f;
  F r = x - n * 0.693145752f;
  r = r - n * 1.42860677e-6f;
  return {r, (dc_like<F, i32>)t - 0x4b400000};
}
template <class F> DC_INLINE F dc_exp_kernel(F x) {
  dc_exp_parts<F> s = dc_reduce_exp(dc_clamp(x, -104.0f, 89.0f));
  F p = dc_exp_tail(s.r) * (s.r * s.r) + s.r + 1.0f;
  return dc_scale(p, s.n);
}
// exp of x in [-87, 0] or NaN: no clamp, no gradual underflow.
template <class F> DC_INLINE F dc_exp_small(F x) {
  dc_exp_parts<F> s = dc_reduce_exp(x);
  F p = dc_exp_tail(s.r) * (s.r * s.r) + s.r + 1.0f;
  return (F)((dc_like<F, i32>)p + (s.n << 23));
}
template <class F> DC_INLINE F dc_exp2_kernel(F x) {
  x = dc_clamp(x, -151.0f, 129.0f);
  F t = x + 12582912.0f;
  F r = x - (t - 12582912.0f);
  F p = r * 0.00015445413f + 0.0013401237f;
  p = p * r + 0.009618097f;
  p = p * r + 0.055503253f;
  p = p * r + 0.2402265f;
  p = p * r + 0.6931472f;
  p = p * r + 1.0f;
  return dc_scale(p, (dc_like<F, i32>)t - 0x4b400000);
}
// 2^n q + (2^n - 1), with q = e^r - 1.
template <class F> DC_INLINE F dc_expm1_kernel(F x) {
  dc_exp_parts<F> s = dc_reduce_exp(dc_clamp(x, -40.0f, 89.0f));
  F q = dc_exp_tail(s.r) * (s.r * s.r) + s.r;
  F half = (F)((s.n + 126) << 23);  // 2^(n-1): 2^128 would overflow
  F y = half * q + (half - 0.5f);
  return x == 0.0f ? x : y + y;
}
DC_FLOAT1(dc_exp, dc_exp_kernel)
DC_FLOAT1(dc_exp2, dc_exp2_kernel)
DC_FLOAT1(dc_expm1, dc_expm1_kernel)

// e / (1 + e) or 1 / (1 + e) with e = exp(-|x|), so that nothing overflows.
template <class F> DC_INLINE F dc_sigmoid_kernel(F x) {
  F e = dc_exp_kernel(-(F)((dc_like<F, i32>)x & 0x7fffffff));
  return (x < 0.0f ? e : F{} + 1.0f) / (1.0f + e);
}
DC_FLOAT1(dc_sigmoid, dc_sigmoid_kernel)

// -t / (2 + t) with t = expm1(-2 |x|).
template <class F> DC_INLINE F dc_tanh_kernel(F x) {
  typedef dc_like<F, i32> I;
  F a = (F)((I)x & 0x7fffffff) * -2.0f;
  a = a < -20.0f ? F{} - 20.0f : a;
  dc_exp_parts<F> s = dc_reduce_exp(a);
  F q = dc_exp_tail(s.r) * (s.r * s.r) + s.r;
  F scale = (F)((s.n + 127) << 23);
  F t = scale * q + (scale - 1.0f);
  F y = t / (t + 2.0f);
  return (F)(((I)y & 0x7fffffff) | ((I)x & (i32)0x80000000));
}
DC_FLOAT1(dc_tanh, dc_tanh_kernel)

// After N. Juffa: x P(x^2) below 0.92, 1 - exp(Q(|x|)) above.
template <class F> DC_INLINE F dc_erf_kernel(F x) {
  typedef dc_like<F, i32> I;
  F t = (F)((I)x & 0x7fffffff);
  F s = x * x;
  F far = t * -1.72853470e-5f + 3.83197126e-4f;
  F mid = t * -3.88396438e-3f + 2.42546219e-2f;
  far = far * s + mid;
  far = far * t - 1.06777877e-1f;
  far = far * t - 6.34846687e-1f;
  far = far * t - 1.28717512e-1f;
  far = far * t - t;
  far = 1.0f - dc_exp_small(t > 4.0f ? F{} - 87.0f : far);
  F near = s * -5.96761703e-4f + 4.99119423e-3f;
  near = near * s - 2.67681349e-2f;
  near = near * s + 1.12819925e-1f;
  near = near * s - 3.76125336e-1f;
  near = near * s + 1.28379166e-1f;
  near = near * x + x;
  far = (F)((I)far | ((I)x & (i32)0x80000000));
  return t > 0.921875f ? far : near;
}
DC_FLOAT1(dc_erf, dc_erf_kernel)

// ------------------------------------------------------------------ logarithms (f32 vectors)
template <class F> DC_INLINE F dc_log_kernel(F x) {
  typedef dc_like<F, i32> I;
  auto subnormal = x < 1.17549435e-38f;
  F scaled = subnormal ? x * 8388608.0f : x;
  I bits = (I)scaled - 0x3f3504f3;  // m in [sqrt(1/2), sqrt(2))
  I n = bits >> 23;
  F f = (F)((bits & 0x7fffff) + 0x3f3504f3) - 1.0f;
  F e = __builtin_convertvector(n, F) - (subnormal ? F{} + 23.0f : F{});
  F p = f * 0.06746626f - 0.11675631f;
  p = p * f + 0.11888153f;
  p = p * f - 0.1240559f;
  p = p * f + 0.14219554f;
  p = p * f - 0.16667996f;
  p = p * f + 0.20002119f;
  p = p * f - 0.2500001f;
  p = p * f + 0.33333313f;
  F s = f * f;
  F y = p * f - 0.5f;
  y = y * s + e * 1.42860677e-6f;
  y = (y + f) + e * 0.693145752f;
  y = x == 0.0f ? F{} - __builtin_inff() : y;
  y = x < 0.0f ? F{} + __builtin_nanf("") : y;
  return (x < __builtin_inff()) | (x != x) ? (x != x ? x : y) : x;
}
DC_FLOAT1(dc_log, dc_log_kernel)

// ------------------------------------------- f64 helpers of f32 ops: accurate to about 2^-34
// log2 of a positive normal double (zero gives about -1023).
template <class D> DC_INLINE D dc_log2_f64(D x) {
  typedef dc_like<D, i64> L;
  L bits = (L)x - 0x3fe6a09e667f3bcdLL;
  D e = (D)((bits >> 52) + 0x4338000000000000LL) - 6755399441055744.0;
  D m = (D)((bits & 0xfffffffffffffLL) + 0x3fe6a09e667f3bcdLL);
  D s = (m - 1.0) / (m + 1.0);
  D t = s * s;
  D p = t * 0.2829081210498433 + 0.31990510475267;
  p = p * t + 0.41220926779280065;
  p = p * t + 0.5770779422011492;
  p = p * t + 0.96179669411395;
  p = p * t + 2.8853900817778495;
  return s * p + e;
}
// 2^x for |x| <= 1000 or NaN.
template <class D> DC_INLINE D dc_exp2_f64(D x) {
  typedef dc_like<D, i64> L;
  D t = x + 6755399441055744.0;
  D r = x - (t - 6755399441055744.0);
  D p = r * 1.5316462328552555e-05 + 0.00015469733057067424;
  p = p * r + 0.0013333422642649176;
  p = p * r + 0.009618025599483422;
  p = p * r + 0.05550410976113425;
  p = p * r + 0.24022651213618165;
  p = p * r + 0.6931471805350236;
  p = p * r + 0.9999999999595479;
  return x == x ? (D)((L)p + ((L)t << 52)) : x;
}
// Run a kernel of doubles on a native vector of floats.
template <class F> using dc_doubles = pair<dc_v<double, dc_info<F>::lanes / 2>>;
#define DC_VIA_F64(NAME, KERNEL)                               \
  template <class F> DC_INLINE F NAME(F x) {                   \
    dc_doubles<F> d = dc_convert<dc_doubles<F>>(x);            \
    d.lo = KERNEL(d.lo);                                       \
    d.hi = KERNEL(d.hi);                                       \
    return dc_convert<F>(d);                                   \
  }
// log2 with the edge cases of a logarithm.
template <class D> DC_INLINE D dc_log2_edges(D x) {
  D y = dc_log2_f64(x);
  y = x == 0 ? D{} - __builtin_inf() : y;
  y = x < 0 ? D{} + __builtin_nan("") : y;
  return (x < __builtin_inf()) & (x == x) ? y : x;
}
template <class D> DC_INLINE D dc_log10_f64(D x) { return dc_log2_edges(x) * 0.30102999566398120; }
template <class D> DC_INLINE D dc_log1p_f64(D x) {
  D far = dc_log2_edges(1.0 + x) * 0.69314718055994531;
  D near = x * (1.0 - x * (0.5 - x * (0.33333333333333333 - x * 0.25)));
  D a = x < 0 ? -x : x;
  return a < 0.0009765625 ? near : far;
}
DC_VIA_F64(dc_log2_kernel, dc_log2_edges)
DC_VIA_F64(dc_log10_kernel, dc_log10_f64)
DC_VIA_F64(dc_log1p_kernel, dc_log1p_f64)
DC_FLOAT1(dc_log2, dc_log2_kernel)
DC_FLOAT1(dc_log10, dc_log10_kernel)
DC_FLOAT1(dc_log1p, dc_log1p_kernel)

// ---------------------------------------------------------------------------------- powers
template <class D> DC_INLINE D dc_pow_magnitude(D a, D y) {
  D e = y * dc_log2_edges(a);
  e = e > 300.0 ? D{} + 300.0 : e;
  e = e < -300.0 ? D{} - 300.0 : e;
  return dc_exp2_f64(e);
}
template <class F> DC_INLINE F dc_truncate(F x) {  // whole part; any magnitude
  typedef dc_like<F, i32> I;
  F a = (F)((I)x & 0x7fffffff);
  F whole = __builtin_convertvector(__builtin_convertvector(a < 8388608.0f ? x : F{}, I), F);
  return a < 8388608.0f ? whole : x;
}
template <class F> DC_INLINE F dc_pow_kernel(F x, F y) {
  typedef dc_like<F, i32> I;
  F a = (F)((I)x & 0x7fffffff);
  dc_doubles<F> d = dc_convert<dc_doubles<F>>(a), e = dc_convert<dc_doubles<F>>(y);
  d.lo = dc_pow_magnitude(d.lo, e.lo);
  d.hi = dc_pow_magnitude(d.hi, e.hi);
  F r = dc_convert<F>(d);
  F half = y * 0.5f;
  auto whole = dc_truncate(y) == y;
  auto odd = whole & (dc_truncate(half) != half);
  r = (I)x < 0 ? (odd ? -r : r) : r;
  r = (x < 0.0f) & (a < __builtin_inff()) & ~whole ? F{} + __builtin_nanf("") : r;
  F one = (x < 0.0f) & odd ? F{} - 1.0f : F{} + 1.0f;
  r = (a == 1.0f) & (y == y) & (((I)x > 0) | whole) ? one : r;
  r = (x == 1.0f) | (y == 0.0f) ? F{} + 1.0f : r;
  return r;
}
DC_INLINE nf dc_pow(nf a, nf b) { return dc_pow_kernel(a, b); }
template <class T, class E> DC_INLINE T dc_int_pow(T a, E n) {
  T r = 1;
  if (n < 0) return a == 1 ? 1 : a == -1 ? (n & 1 ? -1 : 1) : 0;
  for (; n; n >>= 1) {
    if (n & 1) r = (T)((u64)r * (u64)a);
    a = (T)((u64)a * (u64)a);
  }
  return r;
}
DC_LANES2(dc_pow, ni, i32, dc_int_pow(x, y))
DC_LANES2(dc_pow, nl, i64, dc_int_pow(x, y))
DC_LANES2(dc_pow, nd, double, __builtin_pow(x, y))
DC_MAP2(dc_pow)
DC_INLINE float dc_pow(float a, float b) { return dc_pow_kernel(a - dc_f4{}, b - dc_f4{})[0]; }
// A uniform exponent: the exact short cuts of eager torch.
template <class T, class E> DC_INLINE T dc_float_pow(T x, E y) {
  if (y == 1) return x;
  if (y == 2) return x * x;
  if (y == 3) return x * x * x;
  if (y == (E)0.5) return dc_sqrt(x);
  if (y == (E)-0.5) return dc_rsqrt(x);
  if (y == -1) return dc_recip(x);
  if (y == -2) return dc_recip(x * x);
  return dc_pow(x, dc_build<T>::splat(y));
}
DC_INLINE vf32 dc_pow(vf32 x, float y) { return dc_float_pow(x, y); }
DC_INLINE vf64 dc_pow(vf64 x, double y) { return dc_float_pow(x, y); }

// ---------------------------------------------------------------------------- trigonometry
// Reduced in double by pi/2 in three parts (fdlibm); lanes beyond 10^6 go through libm.
template <class D> struct dc_angle { D sine, cosine; dc_like<D, i64> quadrant; };
template <class D> DC_INLINE dc_angle<D> dc_sincos_f64(D x) {
  D t = x * 0.63661977236758134308 + 6755399441055744.0;
  D n = t - 6755399441055744.0;
  D r = x - n * 1.57079632673412561417;
  r = r - n * 6.07710050630396597660e-11;
  r = r - n * 2.02226624879595063154e-21;
  D s = r * r;
  D sine = s * 2.75573137070700676789e-06 - 1.98412698298579493134e-04;
  sine = sine * s + 8.33333333332248946124e-03;
  sine = sine * s - 1.66666666666666324348e-01;
  sine = sine * s * r + r;
  D cosine = s * -2.75573143513906633035e-07 + 2.48015872894767294178e-05;
  cosine = cosine * s - 1.38888888888741095749e-03;
  cosine = cosine * s + 4.16666666666666019037e-02;
  cosine = cosine * s - 0.5;
  cosine = cosine * s + 1.0;
  return {sine, cosine, (dc_like<D, i64>)t};
}
template <class D> DC_INLINE D dc_sin_f64(D x) {
  dc_angle<D> a = dc_sincos_f64(x);
  D y = (a.quadrant & 1) != 0 ? a.cosine : a.sine;
  y = (D)((dc_like<D, i64>)y ^ ((a.quadrant & 2) << 62));
  return x == 0 ? x : y;
}
template <class D> DC_INLINE D dc_cos_f64(D x) {
  dc_angle<D> a = dc_sincos_f64(x);
  D y = (a.quadrant & 1) != 0 ? a.sine : a.cosine;
  return (D)((dc_like<D, i64>)y ^ (((a.quadrant + 1) & 2) << 62));
}
template <class D> DC_INLINE D dc_tan_f64(D x) {
  dc_angle<D> a = dc_sincos_f64(x);
  D y = (a.quadrant & 1) != 0 ? -a.cosine / a.sine : a.sine / a.cosine;
  return x == 0 ? x : y;
}
DC_VIA_F64(dc_sin_kernel, dc_sin_f64)
DC_VIA_F64(dc_cos_kernel, dc_cos_f64)
DC_VIA_F64(dc_tan_kernel, dc_tan_f64)
#define DC_TRIGONOMETRIC(NAME, KERNEL, LIBM)                                      \
  DC_INLINE nf NAME(nf a) {                                                       \
    nf y = KERNEL(a);                                                             \
    u32 far = dc_mask_bits((ni)(dc_abs(a) > 1e6f));                               \
    if (__builtin_expect(far != 0, 0))                                            \
      for (int i = 0; i < dc_info<nf>::lanes; ++i)                                \
        if (far >> i & 1) y[i] = LIBM(a[i]);                                      \
    return y;                                                                     \
  }                                                                               \
  DC_INLINE float NAME(float a) {                                                 \
    return dc_abs(a) > 1e6f ? LIBM(a) : KERNEL(a - dc_f4{})[0];                   \
  }                                                                               \
  DC_MAP1(NAME)
DC_TRIGONOMETRIC(dc_sin, dc_sin_kernel, __builtin_sinf)
DC_TRIGONOMETRIC(dc_cos, dc_cos_kernel, __builtin_cosf)
DC_TRIGONOMETRIC(dc_tan, dc_tan_kernel, __builtin_tanf)

// --------------------------------------------------------------------- libm, lane by lane
#define DC_LIBM_ALL1(NAME)                                                  \
  DC_LIBM1(NAME)                                                            \
  DC_LANES1(dc_##NAME, nf, float, __builtin_##NAME##f(x))                   \
  DC_MAP1(dc_##NAME)
#define DC_LIBM_ALL2(NAME)                                                  \
  DC_LANES2(dc_##NAME, nd, double, __builtin_##NAME(x, y))                  \
  DC_LANES2(dc_##NAME, nf, float, __builtin_##NAME##f(x, y))                \
  DC_MAP2(dc_##NAME)
DC_LIBM_ALL1(erfc) DC_LIBM_ALL1(asin) DC_LIBM_ALL1(acos) DC_LIBM_ALL1(atan)
DC_LIBM_ALL1(sinh) DC_LIBM_ALL1(cosh) DC_LIBM_ALL1(asinh) DC_LIBM_ALL1(acosh)
DC_LIBM_ALL1(atanh) DC_LIBM_ALL1(lgamma)
DC_LIBM_ALL2(atan2) DC_LIBM_ALL2(hypot) DC_LIBM_ALL2(nextafter)

// ------------------------------------------------- special functions, lane by lane in double
// After torch's calc_erfinv: a rational guess and two Newton steps.
DC_INLINE double dc_erfinv_scalar(double y) {
  double a = __builtin_fabs(y), x;
  if (!(a < 1)) return a == 1 ? y * __builtin_inf() : __builtin_nan("");
  if (a <= 0.7) {
    double z = y * y;
    x = y * (((-0.140543331 * z + 0.914624893) * z - 1.645349621) * z + 0.886226899) /
        ((((0.012229801 * z - 0.329097515) * z + 1.442710462) * z - 2.118377725) * z + 1);
  } else {
    double z = __builtin_sqrt(-__builtin_log((1 - a) / 2));
    x = (((1.641345311 * z + 3.429567803) * z - 1.624906493) * z - 1.970840454) /
        ((1.637067800 * z + 3.543889200) * z + 1);
    x = __builtin_copysign(x, y);
  }
  for (int step = 0; step < 2; ++step)
    x -= (__builtin_erf(x) - y) / (1.1283791670955126 * __builtin_exp(-x * x));
  return x;
}
// Reflection, recurrence up to 10, then the asymptotic series (Cephes psi).
DC_INLINE double dc_digamma_scalar(double x) {
  const double pi = 3.14159265358979323846;
  double shift = 0;
  if (x == 0) return __builtin_copysign(__builtin_inf(), -x);
  if (x < 0) {
    double part = x - __builtin_trunc(x);
    if (part == 0) return __builtin_nan("");
    shift = -pi / __builtin_tan(pi * part);
    x = 1 - x;
  }
  for (; x < 10; x += 1) shift -= 1 / x;
  double z = 1 / (x * x);
  double p = 8.33333333333333333333e-2;
  p = p * z - 2.10927960927960927961e-2;
  p = p * z + 7.57575757575757575758e-3;
  p = p * z - 4.16666666666666666667e-3;
  p = p * z + 3.96825396825396825397e-3;
  p = p * z - 8.33333333333333333333e-3;
  p = p * z + 8.33333333333333333333e-2;
  return shift + __builtin_log(x) - 0.5 / x - (x < 1e17 ? z * p : 0);
}
// exp(-|x|) I_order(x): the power series below 30, the asymptotic one above.
DC_INLINE double dc_bessel_scalar(double x, int order, bool scaled) {
  double a = __builtin_fabs(x), sum = 1, term = 1;
  if (!(a <= 30)) {
    if (a != a) return x;
    if (a == __builtin_inf()) return scaled ? (order ? 1 / x : 0.0) : (order ? x : a);
    for (int k = 1; k < 25; ++k) {
      double odd = 2 * k - 1;
      term *= (odd * odd - 4 * order * order) / (8 * a * k);
      sum += term;
    }
    sum /= 2.50662827463100050242 * __builtin_sqrt(a);
    if (!scaled) sum = sum * __builtin_exp(a / 2) * __builtin_exp(a / 2);
  } else {
    for (int k = 1; term > sum * 1e-18; ++k) {
      term *= a * a / 4 / (k * (double)(k + order));
      sum += term;
    }
    if (order) sum *= a / 2;
    if (scaled) sum *= __builtin_exp(-a);
  }
  return order ? __builtin_copysign(sum, x) : sum;
}
#define DC_SPECIAL(NAME, EXPR)                     \
  DC_LANES1(NAME, nd, double, EXPR)                \
  DC_LANES1(NAME, nf, float, (float)EXPR)          \
  DC_MAP1(NAME)
DC_SPECIAL(dc_erfinv, dc_erfinv_scalar(x))
DC_SPECIAL(dc_digamma, dc_digamma_scalar(x))
DC_SPECIAL(dc_i0, dc_bessel_scalar(x, 0, false))
DC_SPECIAL(dc_i0e, dc_bessel_scalar(x, 0, true))
DC_SPECIAL(dc_i1, dc_bessel_scalar(x, 1, false))
DC_SPECIAL(dc_i1e, dc_bessel_scalar(x, 1, true))
// sin(pi x) / (pi x); the whole turns are taken off exactly before the multiplication.
DC_INLINE double dc_sinc_scalar(double x) {
  const double pi = 3.14159265358979323846;
  if (x == 0) return 1;
  return __builtin_sin(pi * (x - 2 * __builtin_rint(x / 2))) / (pi * x);
}
DC_SPECIAL(dc_sinc, dc_sinc_scalar(x))

template <class T> DC_INLINE T dc_int_gcd(T a, T b) {
  while (b) {
    T r = dc_int_fmod(a, b);
    a = b;
    b = r;
  }
  return dc_abs(a);
}
template <class T> DC_INLINE T dc_int_lcm(T a, T b) {
  T g = dc_int_gcd(a, b);
  return g ? dc_abs(T(u64(dc_trunc_div(a, g)) * u64(b))) : 0;
}
DC_LANES2(dc_gcd, ni, i32, dc_int_gcd(x, y))
DC_LANES2(dc_gcd, nl, i64, dc_int_gcd(x, y))
DC_MAP2(dc_gcd)
DC_LANES2(dc_lcm, ni, i32, dc_int_lcm(x, y))
DC_LANES2(dc_lcm, nl, i64, dc_int_lcm(x, y))
DC_MAP2(dc_lcm)

template <class T> DC_INLINE T dc_heaviside(T x, T at_zero) {
  return dc_where(dc_eq(x, T{}), at_zero, dc_where(dc_gt(x, T{}), dc_one(x), T{}));
}
// Equal infinities would otherwise subtract to NaN.
template <class T> DC_INLINE T dc_logaddexp(T a, T b) {
  auto same = dc_bitwise_and(dc_isinf(a), dc_eq(a, b));
  return dc_where(same, a, dc_maximum(a, b) + dc_log1p(dc_exp(-dc_abs(a - b))));
}
template <class T> DC_INLINE T dc_entr(T x) {
  T y = dc_where(dc_eq(x, T{}), T{}, -x * dc_log(x));
  return dc_where(dc_lt(x, T{}), -dc_one(x) / T{}, y);
}

// x log(y) and friends: zero whenever x is zero and y is not NaN.
template <class T> DC_INLINE T dc_xlogy(T x, T y) {
  T r = dc_where(dc_eq(x, T{}), T{}, x * dc_log(y));
  return dc_where(dc_isnan(y), y, r);
}
template <class T> DC_INLINE T dc_xlog1py(T x, T y) {
  T r = dc_where(dc_eq(x, T{}), T{}, x * dc_log1p(y));
  return dc_where(dc_isnan(y), y, r);
}

// ----------------------------------------------------------------------------- horizontal
#define DC_FOLD(NAME, OP)                                                        \
  template <class V> DC_INLINE typename dc_info<V>::elem NAME(V v) {             \
    if constexpr (dc_is_pair<V>::value) return NAME(OP(v.lo, v.hi));             \
    else if constexpr (dc_info<V>::lanes > 2) return NAME(OP(dc_lo(v), dc_hi(v))); \
    else return OP(v[0], v[1]);                                                  \
  }
DC_FOLD(dc_hsum, dc_add)
DC_FOLD(dc_hprod, dc_mul)
DC_FOLD(dc_hmax, dc_maximum)
DC_FOLD(dc_hmin, dc_minimum)
// The first index wins among equals; NaN wins over everything.
#define DC_ARG(NAME, ORDER)                                                                  \
  template <class E> DC_INLINE bool NAME##_before(E a, i64 i, E b, i64 j) {                  \
    bool an = a != a, bn = b != b;                                                           \
    if (an | bn) return an & (!bn | (i < j));                                                \
    return (a ORDER b) | ((a == b) & (i < j));                                               \
  }                                                                                          \
  template <class V, class E> DC_INLINE void dc_h##NAME(V v, vi64 index, E *value, i64 *at) { \
    E t[DC_LANES];                                                                           \
    i64 j[DC_LANES];                                                                         \
    __builtin_memcpy(t, &v, sizeof t);                                                       \
    dc_store(j, index);                                                                      \
    int best = 0;                                                                            \
    for (int i = 1; i < DC_LANES; ++i)                                                       \
      if (NAME##_before(t[i], j[i], t[best], j[best])) best = i;                             \
    *value = t[best];                                                                        \
    *at = j[best];                                                                           \
  }
DC_ARG(argmax, >)
DC_ARG(argmin, <)

// --------------------------------------------------------------------------------- random
// Philox4x32-10 (Salmon et al. 2011). Element `offset` is word offset % 4 of block offset / 4.
template <class L> DC_INLINE L dc_philox_words(L k0, L k1, L c0, L c1, L which) {
  const L low = k0 - k0 + 0xffffffffLL;
  L c2 = k0 - k0, c3 = c2;
  for (int round = 0; round < 10; ++round) {
    L p0 = c0 * 0xd2511f53LL, p1 = c2 * 0xcd9e8d57LL;
    c0 = ((p1 >> 32) & low) ^ c1 ^ k0;
    c2 = ((p0 >> 32) & low) ^ c3 ^ k1;
    c1 = p1 & low;
    c3 = p0 & low;
    k0 = (k0 + 0x9e3779b9LL) & low;
    k1 = (k1 + 0xbb67ae85LL) & low;
  }
  L even = (which & 2) != 0 ? c2 : c0;
  L odd = (which & 2) != 0 ? c3 : c1;
  return (which & 1) != 0 ? odd : even;
}
template <class L> DC_INLINE L dc_philox_kernel(i64 seed, L offset) {
  L zero = offset - offset;
  L block = (offset >> 2) & 0x3fffffffffffffffLL;
  return dc_philox_words(zero + (seed & 0xffffffffLL), zero + ((seed >> 32) & 0xffffffffLL),
                         block & 0xffffffffLL, block >> 32, offset);
}
DC_INLINE nl dc_philox_u32(i64 seed, nl offset) { return dc_philox_kernel(seed, offset); }
DC_INLINE i64 dc_philox_u32(i64 seed, i64 offset) { return dc_philox_kernel(seed, offset); }
template <class T> DC_INLINE pair<T> dc_philox_u32(i64 seed, pair<T> offset) {
  return {dc_philox_u32(seed, offset.lo), dc_philox_u32(seed, offset.hi)};
}
DC_INLINE vf32 dc_unit(vi64 word) {
  return dc_to_f32(word >> dc_splat_i64(8)) * dc_splat_f32(5.9604644775390625e-8f);
}
DC_INLINE float dc_unit(i64 word) { return (float)(word >> 8) * 5.9604644775390625e-8f; }
// Uniform in [0, 1), 24 bits.
template <class L> DC_INLINE auto dc_uniform(i64 seed, L offset) {
  return dc_unit(dc_philox_u32(seed, offset));
}
// Box-Muller on words 2k and 2k+1: the cosine at even offsets, the sine at odd ones.
DC_INLINE vf32 dc_normal(i64 seed, vi64 offset) {
  vi64 one = dc_splat_i64(1);
  vf32 u = dc_splat_f32(1) - dc_uniform(seed, offset & ~one);
  vf32 angle = dc_uniform(seed, offset | one) * dc_splat_f32(6.283185307179586f);
  vf32 radius = dc_sqrt(dc_log(u) * dc_splat_f32(-2));
  return radius * dc_where(dc_to_bool(offset & one), dc_sin(angle), dc_cos(angle));
}
DC_INLINE float dc_normal(i64 seed, i64 offset) {
  float u = 1 - dc_uniform(seed, offset & ~1LL);
  float angle = dc_uniform(seed, offset | 1) * 6.283185307179586f;
  return dc_sqrt(dc_log(u) * -2) * (offset & 1 ? dc_sin(angle) : dc_cos(angle));
}

// --------------------------------------------------------------- states of several values
// Each updates the first state from the second one.
template <class V, class I> DC_INLINE void dc_argmax_combine(V &v, I &i, V w, I j) {
  auto v_nan = dc_isnan(v), w_nan = dc_isnan(w);
  auto tie = dc_bitwise_or(dc_bitwise_and(v_nan, w_nan), dc_eq(v, w));
  auto better = dc_bitwise_or(dc_gt(w, v), dc_bitwise_and(w_nan, dc_bitwise_not(v_nan)));
  better = dc_bitwise_and(better, dc_bitwise_or(w_nan, dc_bitwise_not(v_nan)));
  better = dc_bitwise_or(better, dc_bitwise_and(tie, dc_lt(j, i)));
  v = dc_where(better, w, v);
  i = dc_where(better, j, i);
}
template <class V, class I> DC_INLINE void dc_argmin_combine(V &v, I &i, V w, I j) {
  auto v_nan = dc_isnan(v), w_nan = dc_isnan(w);
  auto tie = dc_bitwise_or(dc_bitwise_and(v_nan, w_nan), dc_eq(v, w));
  auto better = dc_bitwise_or(dc_lt(w, v), dc_bitwise_and(w_nan, dc_bitwise_not(v_nan)));
  better = dc_bitwise_and(better, dc_bitwise_or(w_nan, dc_bitwise_not(v_nan)));
  better = dc_bitwise_or(better, dc_bitwise_and(tie, dc_lt(j, i)));
  v = dc_where(better, w, v);
  i = dc_where(better, j, i);
}
// Chan, Golub and LeVeque 1979; an empty state has count 0.
template <class V>
DC_INLINE void dc_welford_combine(V &mean, V &m2, V &count, V mean_b, V m2_b, V count_b) {
  V total = count + count_b;
  V share = dc_where(dc_eq(total, V{}), V{}, count_b / total);
  V delta = mean_b - mean;
  mean = mean + delta * share;
  m2 = m2 + m2_b + delta * delta * count * share;
  count = total;
}
// sum exp(x - maximum); the log-sum-exp is maximum + log(sum).
template <class V> DC_INLINE void dc_lse_combine(V &maximum, V &sum, V maximum_b, V sum_b) {
  V m = dc_maximum(maximum, maximum_b);
  V shift = dc_where(dc_isinf(m), V{}, m);
  sum = sum * dc_exp(maximum - shift) + sum_b * dc_exp(maximum_b - shift);
  maximum = m;
}
template <class V, class E>
DC_INLINE void dc_hwelford(V mean, V m2, V count, E *mean_out, E *m2_out, E *count_out) {
  E a[DC_LANES], b[DC_LANES], c[DC_LANES];
  dc_store(a, mean);
  dc_store(b, m2);
  dc_store(c, count);
  for (int step = DC_LANES / 2; step; step /= 2)
    for (int i = 0; i < step; ++i)
      dc_welford_combine(a[i], b[i], c[i], a[i + step], b[i + step], c[i + step]);
  *mean_out = a[0];
  *m2_out = b[0];
  *count_out = c[0];
}
template <class V, class E>
DC_INLINE void dc_hlse(V maximum, V sum, E *maximum_out, E *sum_out) {
  E m = dc_hmax(maximum);
  E shift = dc_isinf(m) ? E{} : m;
  *maximum_out = m;
  *sum_out = dc_hsum(sum * dc_exp(maximum - dc_build<V>::splat(shift)));
}
