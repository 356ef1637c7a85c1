-- A whole conversation's answers are listed newest first, over all its sessions. The index of contexts
-- has session and epoch ahead of the position, so it gave their order for one session only.
CREATE INDEX message_bodies_history ON public.message_bodies (conversation, position DESC)
    WHERE conversation IS NOT NULL;
