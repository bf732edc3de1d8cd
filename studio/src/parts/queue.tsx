// What waits and what is being drawn, in its order; each can be cancelled, or all of it.

import { useEffect, useState } from 'preact/hooks';
import { cancel } from '../state/actions';
import { percent, plural, t } from '../i18n';
import { active, partDone, progressOf } from '../server/live';
import { contentOf, focus, pausedAt, pauseQueue, refreshQueue } from '../state/store';
import { Thumb } from './pictures/picture';
import { Button, Dialog } from './ui';

export function QueueButton() {
  const [isOpen, setOpen] = useState(false);
  const count = active.value.length;
  return (
    <>
      <Button icon="queue" kind="quiet" onClick={() => setOpen(true)}>
        {plural('queue.count', count)}
      </Button>
      {isOpen && <QueueDialog onClose={() => setOpen(false)} />}
    </>
  );
}

function QueueDialog({ onClose }: { onClose: () => void }) {
  const ids = active.value;
  useEffect(() => void refreshQueue(), []);
  const stopAll = async () => {
    // The last ones first, so that nothing begins meanwhile.
    for (const id of [...ids].reverse()) await cancel(id);
  };
  return (
    <Dialog title={t('queue.title')} onClose={onClose}>
      {ids.length ? (
        <ul class="choices queue">
          {ids.map((id) => (
            <QueueRow key={id} id={id} onClose={onClose} />
          ))}
        </ul>
      ) : (
        <p class="muted">{t('queue.empty')}</p>
      )}
      <footer class="row end">
        <Button icon="queue" onClick={() => void pauseQueue(pausedAt.value === null)}>
          {t(pausedAt.value === null ? 'queue.pause' : 'queue.resume')}
        </Button>
        <Button icon="close" disabled={!ids.length} onClick={() => void stopAll()}>
          {t('queue.stopAll')}
        </Button>
      </footer>
    </Dialog>
  );
}

function QueueRow({ id, onClose }: { id: string; onClose: () => void }) {
  const content = contentOf(id).value;
  const part = partDone(progressOf(id).value);
  return (
    <li class="row between">
      <span class="queue-thumb">
        <Thumb
          id={id}
          whole
          onOpen={() => {
            focus.value = id;
            onClose();
          }}
        />
      </span>
      <span class="choice-words">
        <span class="clamp">{content?.prompt || t('picture.noPrompt')}</span>
        <span class="muted small num">
          {content?.status === 'queued' || part === null ? t('status.queued') : percent(part)}
        </span>
      </span>
      <Button icon="close" kind="quiet" iconOnly onClick={() => void cancel(id)}>
        {t('action.cancel')}
      </Button>
    </li>
  );
}
