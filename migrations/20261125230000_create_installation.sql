-- Which ledger this is, for whoever gets its events somewhere else: a copy or a restored backup is the
-- same installation, a second ledger is not (ops/decisions/0021). Made once, never changed.
CREATE TABLE public.installation (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    id  uuid    NOT NULL DEFAULT gen_random_uuid()
);

INSERT INTO public.installation DEFAULT VALUES;

GRANT SELECT ON public.installation TO botledger_writer;
