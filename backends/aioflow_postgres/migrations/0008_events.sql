-- What has happened to an entity, whatever the event.
CREATE INDEX events_of_entity ON events (entity_id, id) WHERE entity_id IS NOT NULL;
