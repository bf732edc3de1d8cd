// The form's settings in short, where a view builds on them.

import { avatar, usedLoras, type Whole } from '../../drafting/draft';
import { number, t } from '../../i18n';
import { avatars } from '../../state/store';

export function SettingsLine({ of, withoutPrompt }: { of: Whole; withoutPrompt?: boolean }) {
  const character = avatars.value?.find((one) => one.id === of.avatarId);
  const parts = [
    character?.name,
    ...of.styles,
    ...usedLoras.value.map(({ lora, scale }) => `${lora.name} ${number(scale, 2, 2)}`),
    `${of.width} × ${of.height}`,
    `${of.steps} ${t('form.steps').toLowerCase()}`,
    `CFG ${number(of.cfg, 2)}`,
    of.scheduler ?? avatar.value?.scheduler,
    of.seedIsLocked && of.seed !== null ? `${t('form.seed').toLowerCase()} ${of.seed}` : null,
  ].filter(Boolean);
  return (
    <div class="settings-line">
      <div>
        {!withoutPrompt && <p class="prompt-text">{of.prompt || t('picture.noPrompt')}</p>}
        <p class="muted small num">{parts.join(' · ')}</p>
      </div>
      <a class="button quiet" href="#/create">
        {t('form.change')}
      </a>
    </div>
  );
}
