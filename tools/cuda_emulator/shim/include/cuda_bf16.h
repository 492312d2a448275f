// All of it comes with cuda_emulator.h.
