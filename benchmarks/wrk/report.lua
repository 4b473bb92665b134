-- Prints what a run came to, as one line of JSON.
function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    'REPORT {"requests":%d,"seconds":%.6f,"p50_ms":%.4f,"p99_ms":%.4f,"errors":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
