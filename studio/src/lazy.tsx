// Views that not everybody opens are fetched when they are.

import type { ComponentType } from 'preact';
import { useEffect, useState } from 'preact/hooks';
import { t } from './i18n';
import { Button, Loading } from './parts/ui';

/** A component that is fetched when it is first shown; a lost line is told, and tried again. */
export function lazy<P extends object>(fetch: () => Promise<ComponentType<P>>): ComponentType<P> {
  let found: ComponentType<P> | null = null;
  return function Lazy(props: P) {
    const [state, setState] = useState<'loading' | 'there' | 'failed'>(found ? 'there' : 'loading');
    useEffect(() => {
      if (state !== 'loading') return;
      fetch().then(
        (component) => {
          found = component;
          setState('there');
        },
        () => setState('failed'),
      );
    }, [state]);
    if (found) {
      const Found = found;
      return <Found {...props} />;
    }
    if (state === 'loading') return <Loading />;
    return (
      <div class="page">
        <p>{t('error.OFFLINE')}</p>
        <p>
          <Button icon="again" onClick={() => setState('loading')}>
            {t('action.retry')}
          </Button>
        </p>
      </div>
    );
  };
}
