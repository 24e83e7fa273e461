-- Makes one change of a ledger, whole or not at all, and appends its audit records to the chain.
--
-- KEYS     what the change looks at or writes: state, log, turn, then any others; all in one slot
-- ARGV     types of the keys, separated by commas
--          the head that the records follow: sequence, hash
--          attempt: a name of this call that no other has, the same when it is sent again
--          "1" if it has lost against others often enough to ask for a turn, else "0"
--          how many expectations; for each of them: key (its index), field, "=" and the value or "-" and "" for none
--          how many records; for each of them: previous, time, event, actor, details, hash
--          until the end: command, key (its index), how many arguments, these
-- returns  {"done", ""}: made, now or when it was sent before
--          {"moved", sequence, hash, time}: others changed the ledger meanwhile; this is its head now
--          {"wait", ""}: it is somebody else's turn
--          {"differs", number}: that expectation (from 1) does not hold
--
-- Everything is looked at before anything is written, so that a server that refuses (out of memory, read-only, a key
-- of another type) has changed nothing.

local state, log, turn = KEYS[1], KEYS[2], KEYS[3]
local TURN_MILLISECONDS = 1000

local place = 0
local function take()
    place = place + 1
    return ARGV[place]
end

local number = 0
for wanted in string.gmatch(take(), '[a-z]+') do
    number = number + 1
    local found = redis.call('TYPE', KEYS[number]).ok
    if found ~= 'none' and found ~= wanted then
        return redis.error_reply('DAMAGED `' .. KEYS[number] .. '` is a ' .. found .. ', not a ' .. wanted)
    end
end

local known = redis.call('HMGET', state, 'version', 'sequence', 'hash', 'time')
if not known[1] then
    return redis.error_reply('LOST the ledger is gone')
end
local sequence, hash, attempt, hungry = take(), take(), take(), take()

local expectations = {}
for index = 1, tonumber(take()) do
    expectations[index] = {KEYS[tonumber(take())], take(), take(), take()}
end

local count = tonumber(take())
local latest
local next_sequence = tonumber(sequence) + 1

if count > 0 then
    if known[2] ~= sequence or known[3] ~= hash then
        local id = string.format('%.0f-0', next_sequence)
        local record = redis.call('XRANGE', log, id, id)[1]
        if record then
            local fields = record[2]
            for index = 1, #fields, 2 do
                if fields[index] == 'attempt' and fields[index + 1] == attempt then
                    -- A write, so that WAIT on this connection waits for what it stands for.
                    redis.call('HSET', state, 'version', known[1])
                    return {'done', ''}
                end
            end
        end
    end
    local whose = redis.call('GET', turn)
    local mine = string.match(attempt, '^[^:]*')
    if whose and whose ~= mine then
        return {'wait', ''}
    end
    if known[2] ~= sequence or known[3] ~= hash then
        if hungry == '1' then
            redis.call('SET', turn, mine, 'PX', TURN_MILLISECONDS)
        end
        return {'moved', known[2], known[3], known[4]}
    end
end

for index, one in ipairs(expectations) do
    local value = redis.call('HGET', one[1], one[2])
    local holds
    if one[3] == '=' then holds = value == one[4] else holds = not value end
    if not holds then
        return {'differs', index}
    end
end

-- From here on nothing is refused: XADD comes first, and refuses a sequence that is not above all others.
for index = 1, count do
    local previous, time, event, actor, details, own = take(), take(), take(), take(), take(), take()
    redis.call('XADD', log, string.format('%.0f-0', next_sequence),
        'previous', previous, 'time', time, 'event', event, 'actor', actor, 'details', details, 'hash', own,
        'attempt', attempt)
    sequence, hash, latest = string.format('%.0f', next_sequence), own, time
    next_sequence = next_sequence + 1
end
if count > 0 then
    redis.call('HSET', state, 'sequence', sequence, 'hash', hash, 'time', latest)
    redis.call('DEL', turn)
end
while place < #ARGV do
    local command, key, arguments = take(), KEYS[tonumber(take())], {}
    for index = 1, tonumber(take()) do
        arguments[index] = take()
    end
    redis.call(command, key, unpack(arguments))
end
return {'done', ''}
