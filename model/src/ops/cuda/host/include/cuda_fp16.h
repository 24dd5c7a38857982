// Half precision on the host, under the name the kernels include.
#pragma once

struct __half {
    _Float16 value;
};

inline float __half2float(__half value) { return (float)value.value; }
inline __half __float2half(float value) { return {(_Float16)value}; }
