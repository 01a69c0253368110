"""From QDQ patterns to layers that compute in integers, and the definition of their arithmetic."""
