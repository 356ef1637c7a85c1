-- A heartbeat that was on its way when its holder gave the lease back must not take it again: whoever
-- waits for the bot would wait for a process that is gone.
CREATE OR REPLACE FUNCTION public.bot_lease_renew(bot uuid, held_epoch bigint, ttl interval) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- No lock: a later expiry under the same epoch takes nothing from anybody. An expired lease may be
    -- renewed as long as nobody else has taken it.
    UPDATE public.bot_leases SET expires_at = clock_timestamp() + ttl
    WHERE bot_id = bot AND epoch = held_epoch AND expires_at > '-infinity';
    RETURN FOUND;
END
$$;
