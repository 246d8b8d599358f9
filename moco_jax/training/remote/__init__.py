"""Runs in buckets: a local copy that the loop works in, and a mirror of it in the bucket."""
