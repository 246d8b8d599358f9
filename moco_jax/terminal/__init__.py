"""Between a command and the person who types it: arguments, messages, progress, signals."""
