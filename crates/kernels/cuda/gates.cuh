// What opens a gate, in f32.
#pragma once

enum class Gate { gelu, gelu_tanh, silu };

template <Gate GATE> static __device__ __forceinline__ float opened(float value) {
  // Hendrycks and Gimpel 2016, exactly and by tanh.
  if (GATE == Gate::gelu) return 0.5f * value * (1 + erff(value * 0.70710678118654752f));
  if (GATE == Gate::gelu_tanh) return 0.5f * value * (1 + tanhf(0.79788456080286536f * (value + 0.044715f * value * value * value)));
  return value / (1 + expf(-value));
}
