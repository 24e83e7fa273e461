-- Charges a batch of calls on their buckets, each call all or nothing: `ratelimit/charge.py` and
-- `ratelimit/algorithm.py` inside the store. Keep the three alike: property tests hold them to each other.
--
-- KEYS     every bucket, and every record of a call that is to be counted once, of all calls; all in one slot
-- ARGV[1]  numbers, as packed doubles (every whole number below 2^53 is exact in one):
--            time in microseconds (0: that of this server), how many limits, how many calls
--            for each limit: algorithm and flags, requests per window, capacity (of a rolling window: its steps), window in
--              ticks, microseconds of a tick, and four ends of calendar windows (0 without a calendar)
--            for each call: how many spends; for each of them: key, limit, cost, descriptor, key of the record
--              (0: none), for how many microseconds, how much more to take if the cost fits
-- returns  four packed doubles for each spend, in order: allowed, remaining, reset in microseconds, granted (-1:
--          nothing to tell)
--
-- A bucket's value is packed doubles as well. Nothing is written before everything is decided, so that a server
-- that refuses to write (out of memory, read-only) has changed nothing.

local unpack_doubles, pack_doubles = struct.unpack, struct.pack
local floor, ceil, min, max = math.floor, math.ceil, math.min, math.max

local MAX_COUNT = 9007199254740991
local LEASE_SLOTS = 16
-- A hundred years, in seconds: nothing is kept or announced for longer, and products stay exact.
local MAX_SECONDS = 100 * 365 * 86400
local FIXED, SLIDING, TOKENS, PLACES = 1, 2, 3, 4
local DOUBLES = {}
for count = 1, 9 do
    DOUBLES[count] = '<' .. string.rep('d', count)
end

local data, place = ARGV[1], 1
local function take(count)
    local start = place
    place = place + 8 * count
    return unpack_doubles(DOUBLES[count], data, start)
end

local virtual, limit_count, call_count = take(3)
local now = virtual
if now == 0 then
    local time = redis.call('TIME')
    now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local function flag(code, bit)
    return floor(code / bit) % 2 == 1
end

local limits = {}
for index = 1, limit_count do
    local code, rate, capacity, window, tick, e1, e2, e3, e4 = take(9)
    limits[index] = {
        algorithm = code % 8,
        shadow = flag(code, 8), quota = flag(code, 16), counts = flag(code, 32), best_effort = flag(code, 64),
        rate = rate, capacity = capacity, window = window, tick = tick,
        ends = e1 > 0 and {e1, e2, e3, e4} or nil,
    }
end

-- Buckets as they were found, and, further on, as the calls before have left them; nil where there is none.
local buckets = {}
for first = 1, #KEYS, 1000 do
    local last = min(first + 999, #KEYS)
    local found = redis.call('MGET', unpack(KEYS, first, last))
    for index = first, last do
        local value = found[index - first + 1]
        if value and #value == 16 then
            local first_number, second_number = unpack_doubles('<dd', value)
            buckets[index] = {first_number, second_number}
        elseif value and #value > 0 and #value % 8 == 0 then
            local bucket = {}
            for at = 1, #value, 8 do
                bucket[#bucket + 1] = unpack_doubles('<d', value, at)
            end
            buckets[index] = bucket
        end
    end
end

-- Each returns: allowed, remaining, reset in microseconds, bucket, microseconds that it is worth keeping.

local function fixed_window(limit, bucket, cost)
    local window_end, next_end
    if limit.ends then
        -- A caller whose clock is more than a window behind: its last window goes on, denying sooner rather than later.
        window_end, next_end = limit.ends[4], limit.ends[4]
        for index = 1, 3 do
            if now < limit.ends[index] then
                window_end, next_end = limit.ends[index], limit.ends[index + 1]
                break
            end
        end
    else
        window_end = now - now % limit.window + limit.window
        next_end = window_end + limit.window
    end
    local spent = 0
    if bucket and #bucket == 2 and (bucket[1] == window_end or bucket[1] == next_end) then
        window_end, spent = bucket[1], bucket[2]
    end
    local after = max(min(spent + cost, MAX_COUNT), 0)
    local left = limit.rate - after
    local allowed = cost < 0 or (cost > 0 and left >= 0) or (cost == 0 and left > 0)
    if not allowed and not limit.counts then
        after, left = spent, limit.rate - spent
    end
    local reset = max(window_end - now, 1)
    local kept = window_end > now and reset or limit.window
    return allowed, max(left, 0), reset, {window_end, after}, kept
end

local function share(previous, to_end, window)
    return ceil(previous * to_end / window)
end

local function sliding_wait(limit, wanted, current, previous, to_end)
    local most, window = limit.rate, limit.window
    local room = most - wanted - current
    if room >= 0 then
        return max(to_end - floor(room * window / max(previous, 1)), 1)
    end
    if wanted > most then
        return to_end + window
    end
    return to_end + window - min(floor((most - wanted) * window / min(current, most)), window)
end

local function sliding_window(limit, bucket, cost)
    local tick, window, most = limit.tick, limit.window, limit.rate
    local at = floor(now / tick)
    local window_end = at - at % window + window
    local current, previous = 0, 0
    if bucket and #bucket == 3 then
        if bucket[1] == window_end or bucket[1] == window_end + window then
            window_end, current, previous = bucket[1], bucket[2], bucket[3]
            at = max(at, window_end - window)
        elseif bucket[1] == window_end - window then
            previous = bucket[2]
        end
    end
    previous = min(previous, most)
    local left = most - current - share(previous, window_end - at, window)
    local wanted = cost
    if cost == 0 then
        wanted = 1
    end
    local allowed = wanted < 0 or left >= wanted
    if allowed or limit.counts then
        if cost > 0 then
            current = allowed and current + cost or max(current, min(current + cost, most))
        elseif cost < 0 then
            local back = min(current, -cost)
            current = current - back
            previous = max(previous + cost + back, 0)
        end
    end
    local wait = 0
    if not allowed then
        wait = sliding_wait(limit, wanted, current, previous, window_end - at)
    elseif current > 0 then
        wait = window_end + window - at
    elseif previous > 0 then
        wait = window_end - at
    end
    left = most - current - share(previous, window_end - at, window)
    local kept = (window_end + window) * tick - now
    return allowed, max(left, 0), wait * tick, {window_end, current, previous}, kept
end

local function token_bucket(limit, bucket, cost)
    local rate, capacity, tick, window = limit.rate, limit.capacity, limit.tick, limit.window
    local full = capacity * window
    local at = floor(now / tick)
    local debt = 0
    if bucket and #bucket == 2 and rate > 0 then
        debt = min(bucket[2], full)
        local elapsed = at - bucket[1]
        if elapsed < 0 then
            if -elapsed <= ceil(full / rate) then
                at = bucket[1]
            end
        elseif elapsed >= ceil(debt / rate) then
            debt = 0
        else
            debt = debt - elapsed * rate
        end
    end
    local wanted = cost
    if cost == 0 then
        wanted = 1
    end
    local allowed = wanted < 0 or (rate > 0 and wanted <= capacity and wanted * window <= full - debt)
    if rate == 0 then
        return allowed, 0, window * tick, {at, 0}, 0
    end
    local wait
    if not allowed then
        local short = debt
        if wanted <= capacity then
            short = debt + wanted * window - full
        end
        wait = ceil(short / rate)
    end
    if allowed or limit.counts then
        if cost > 0 then
            debt = allowed and debt + cost * window or full
        elseif cost < 0 then
            debt = max(debt - min(-cost, capacity) * window, 0)
        end
    end
    local empty = ceil(debt / rate)
    local left = floor((full - debt) / window)
    local reset = min((wait or empty) * tick, MAX_SECONDS * 1000000)
    return allowed, left, reset, {at, debt}, (at + empty + 1) * tick - now
end

-- Concurrency and rolling windows.
local function lease(limit, bucket, cost)
    local tick, most = limit.tick, limit.rate
    local slots, life = LEASE_SLOTS, LEASE_SLOTS + 1
    if limit.algorithm ~= PLACES then
        slots, life = limit.capacity, limit.capacity
    end
    local step = ceil(limit.window / slots)
    local at = floor(now / tick)
    local slot = floor(at / step)
    local leases, held = {}, 0
    if bucket and #bucket % 2 == 0 then
        for index = 1, #bucket, 2 do
            if bucket[index] > slot - life and bucket[index] <= slot + slots then
                leases[#leases + 1] = bucket[index]
                leases[#leases + 1] = bucket[index + 1]
                held = held + bucket[index + 1]
            end
        end
    end
    local wanted = cost
    if cost == 0 then
        wanted = 1
    end
    local allowed = wanted < 0 or held + wanted <= most
    if allowed and cost > 0 then
        local newest = slot
        if #leases > 0 then
            newest = max(slot, leases[#leases - 1])
        end
        if #leases > 0 and leases[#leases - 1] == newest then
            leases[#leases] = leases[#leases] + cost
        else
            leases[#leases + 1] = newest
            leases[#leases + 1] = cost
        end
        held = held + cost
    elseif cost < 0 then
        local back = min(-cost, held)
        held = held - back
        while back > 0 do
            local count = leases[#leases]
            if count > back then
                leases[#leases] = count - back
                back = 0
            else
                leases[#leases], leases[#leases - 1] = nil, nil
                back = back - count
            end
        end
    end
    local reset = limit.window * tick
    if held > 0 then
        local places, ends = held, 0
        if not allowed then
            places = held + wanted - most
        end
        for index = 1, #leases, 2 do
            ends = leases[index] + life
            places = places - leases[index + 1]
            if places <= 0 then
                break
            end
        end
        reset = (ends * step - at) * tick
    elseif allowed then
        reset = 0
    end
    local last = slot
    if #leases > 0 then
        last = leases[#leases - 1]
    end
    local kept = #leases > 0 and (last + life) * step * tick - now or 0
    return allowed, max(most - held, 0), reset, leases, kept
end

local function apply(limit, bucket, cost)
    if limit.algorithm == FIXED then
        return fixed_window(limit, bucket, cost)
    elseif limit.algorithm == SLIDING then
        return sliding_window(limit, bucket, cost)
    elseif limit.algorithm == TOKENS then
        return token_bucket(limit, bucket, cost)
    end
    return lease(limit, bucket, cost)
end

-- What the call at hand has written so far: buckets, and how long they are worth keeping.
local written, kept = {}, {}

local function charge(spend, cost)
    local limit, key = spend.limit, spend.key
    local bucket = written[key] or buckets[key]
    local allowed, left, reset, after, keep = apply(limit, bucket, cost)
    if bucket or (cost > 0 and (allowed or limit.counts)) then
        written[key], kept[key] = after, keep
    end
    return {allowed = allowed, left = left, reset = reset}
end

local function recorded(spend)
    if spend.once == 0 or spend.asked == 0 then
        return nil
    end
    local record = written[spend.once] or buckets[spend.once]
    if record and record[1] > now then
        return record
    end
    return nil
end

local function is_denied(spends)
    local quotas, has_quota = {}, false
    for _, spend in ipairs(spends) do
        local over = not spend.outcome.allowed and not spend.limit.shadow
        if spend.limit.quota then
            has_quota = true
            quotas[spend.descriptor] = quotas[spend.descriptor] or over
        elseif over then
            return true
        end
    end
    if not has_quota then
        return false
    end
    for _, over in pairs(quotas) do
        if not over then
            return false
        end
    end
    return true
end

local dirty, reply = {}, {}

for _ = 1, call_count do
    local spends = {}
    written, kept = {}, {}
    for index = 1, (take(1)) do
        local key, limit, cost, descriptor, once, once_for, extra = take(7)
        spends[index] = {
            key = key, limit = limits[limit], asked = cost, cost = cost,
            descriptor = descriptor, once = once, once_for = once_for, extra = extra,
        }
    end
    -- By descriptor, what the limit with least remaining could give, where a part is enough.
    local parts = {}
    for _, spend in ipairs(spends) do
        if spend.limit.best_effort and spend.asked > 1 then
            local _, left = apply(spend.limit, buckets[spend.key], 0)
            parts[spend.descriptor] = max(min(parts[spend.descriptor] or spend.asked, left), 1)
        end
    end
    for _, spend in ipairs(spends) do
        if spend.asked > 1 then
            spend.cost = parts[spend.descriptor] or spend.asked
        end
        if spend.extra > 0 and spend.asked > 0 then
            local _, left = apply(spend.limit, buckets[spend.key], 0)
            spend.cost = max(spend.cost, min(spend.asked + spend.extra, left))
        end
    end
    for _, spend in ipairs(spends) do
        spend.record = recorded(spend)
        spend.outcome = charge(spend, spend.record and 0 or spend.cost)
        if spend.record then
            spend.outcome.allowed = true
        elseif spend.once > 0 and spend.cost ~= 0 and spend.outcome.allowed then
            written[spend.once], kept[spend.once] = {now + spend.once_for, spend.cost}, spend.once_for
        end
    end
    if is_denied(spends) then
        written, kept = {}, {}
        for _, spend in ipairs(spends) do
            local again = (spend.limit.counts and not spend.record) and spend.cost or 0
            local outcome = charge(spend, again)
            if spend.outcome.allowed then
                outcome.allowed = true
                spend.outcome = outcome
            else
                spend.outcome.left = outcome.left
            end
        end
    end
    for key, bucket in pairs(written) do
        buckets[key], dirty[key] = bucket, kept[key]
    end
    for _, spend in ipairs(spends) do
        local granted = -1
        if (spend.limit.best_effort or spend.extra > 0) and spend.cost > 0 and spend.outcome.allowed then
            granted = spend.record and spend.record[2] or spend.cost
        end
        reply[#reply + 1] = pack_doubles(
            '<dddd', spend.outcome.allowed and 1 or 0, spend.outcome.left, spend.outcome.reset, granted
        )
    end
end

for key, keep in pairs(dirty) do
    local bucket = buckets[key]
    if keep <= 0 or #bucket == 0 then
        redis.call('DEL', KEYS[key])
    else
        local value
        if #bucket <= 4 then
            value = pack_doubles(DOUBLES[#bucket], unpack(bucket))
        else
            local parts = {}
            for index, number in ipairs(bucket) do
                parts[index] = pack_doubles('<d', number)
            end
            value = table.concat(parts)
        end
        -- With a time that is not this server's, nothing runs out while others look on.
        local margin = virtual > 0 and 3600000 or 0
        local milliseconds = min(ceil(keep / 1000) + margin, MAX_SECONDS * 1000)
        redis.call('SET', KEYS[key], value, 'PX', string.format('%.0f', milliseconds))
    end
end

return table.concat(reply)
