-- Leases change under the ledger's own lock, so that the fence of an append that is being written
-- cannot move beneath it.
CREATE FUNCTION public.bot_lease_acquire(bot uuid, claimant uuid, ttl interval)
-- granted: the claimant holds it now, under this epoch. Otherwise the holder's instance, epoch and the
-- time left. previous: who held it before, when it had run out.
RETURNS TABLE (granted boolean, holder uuid, lease_epoch bigint, time_left interval, previous uuid)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    lease public.bot_leases;
    moment timestamptz;
BEGIN
    PERFORM pg_advisory_xact_lock(7209065211);
    moment := clock_timestamp();
    SELECT * INTO lease FROM public.bot_leases WHERE bot_id = bot;
    IF lease.bot_id IS NOT NULL AND lease.expires_at > moment THEN
        RETURN QUERY SELECT false, lease.instance, lease.epoch, lease.expires_at - moment, NULL::uuid;
        RETURN;
    END IF;
    INSERT INTO public.bot_leases AS l (bot_id, instance, epoch, expires_at)
    VALUES (bot, claimant, 1, moment + ttl)
    ON CONFLICT (bot_id) DO UPDATE
        SET instance = claimant, epoch = l.epoch + 1, expires_at = moment + ttl
    RETURNING epoch INTO lease_epoch;
    RETURN QUERY SELECT true, claimant, lease_epoch, ttl, lease.instance;
END
$$;

CREATE FUNCTION public.bot_lease_renew(bot uuid, held_epoch bigint, ttl interval) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- No lock: a later expiry under the same epoch takes nothing from anybody. An expired lease may be
    -- renewed as long as nobody else has taken it.
    UPDATE public.bot_leases SET expires_at = clock_timestamp() + ttl WHERE bot_id = bot AND epoch = held_epoch;
    RETURN FOUND;
END
$$;

CREATE FUNCTION public.bot_lease_release(bot uuid, held_epoch bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- The row stays, so that the next epoch is higher.
    UPDATE public.bot_leases SET expires_at = '-infinity' WHERE bot_id = bot AND epoch = held_epoch;
    RETURN FOUND;
END
$$;

REVOKE ALL ON FUNCTION public.bot_lease_acquire, public.bot_lease_renew, public.bot_lease_release FROM PUBLIC;
GRANT EXECUTE ON FUNCTION public.bot_lease_acquire, public.bot_lease_renew, public.bot_lease_release TO botledger_writer;
