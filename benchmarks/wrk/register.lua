-- Registers a new user with each request; the argument makes the addresses of two runs different.
local counter = 0
local run = "0"

function init(arguments)
  run = arguments[1]
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
end

function request()
  counter = counter + 1
  local body = string.format('{"email":"user%d@run%s.example.com","password":"correct horse battery staple","age":30}',
    counter, run)
  return wrk.format(nil, nil, nil, body)
end

dofile("benchmarks/wrk/report.lua")
