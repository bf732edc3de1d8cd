// Views that not everybody opens are fetched when they are.

import type { ComponentType } from 'preact';
import { useEffect, useState } from 'preact/hooks';
import { t } from './i18n';
import { Button, Loading } from './parts/ui';
import { reached } from './state/store';

const LONGEST_PAUSE_MS = 15_000;

/**
 * A component that is fetched when it is first shown; a lost line is told, and tried again: by
 * itself, at once where the server is reached again, and by a button.
 */
export function lazy<P extends object>(fetch: () => Promise<ComponentType<P>>): ComponentType<P> {
  let found: ComponentType<P> | null = null;
  return function Lazy(props: P) {
    const [tries, setTries] = useState(0);
    const [failed, setFailed] = useState(false);
    const again = () => setTries((count) => count + 1);
    useEffect(() => {
      if (found) return;
      let isOver = false;
      let timer = 0;
      fetch().then(
        (component) => {
          found = component;
          if (!isOver) again();
        },
        () => {
          if (isOver) return;
          setFailed(true);
          timer = window.setTimeout(again, Math.min(1000 * 2 ** tries, LONGEST_PAUSE_MS));
        },
      );
      return () => {
        isOver = true;
        clearTimeout(timer);
      };
    }, [tries, reached.value]);
    if (found) {
      const Found = found;
      return <Found {...props} />;
    }
    if (!failed) return <Loading />;
    return (
      <div class="page">
        <p>{t('error.OFFLINE')}</p>
        <p>
          <Button icon="again" onClick={again}>
            {t('action.retry')}
          </Button>
        </p>
      </div>
    );
  };
}
