-- What an event tells besides which thing changed, for people.
ALTER TABLE events ADD COLUMN text TEXT;
