"""What Timers does in how much time and memory, beside what people would pick instead."""
