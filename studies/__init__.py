"""The experiments behind the chapters: functions that a chapter calls, and the long runs behind stored results."""
