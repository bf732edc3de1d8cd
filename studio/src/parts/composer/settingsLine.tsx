// The form's settings in short, where a view builds on them.

import type { Axis } from '../../drafting/axes';
import { avatar, usedLoras, type Whole } from '../../drafting/draft';
import { number, t } from '../../i18n';
import { avatars } from '../../state/store';
import type { LoraUse } from '../../server/types';

interface Props {
  of: Whole;
  withoutPrompt?: boolean;
  /** What differs from picture to picture is left out. */
  axes?: Axis[];
}

export function SettingsLine({ of, withoutPrompt, axes = [] }: Props) {
  const character = avatars.value?.find((one) => one.id === of.avatarId);
  const varied = axes.flatMap(({ parameter, values }): string[] =>
    parameter === 'which_lora'
      ? values.flatMap((one) => (one ? [`lora:${(one as LoraUse).lora_model_id}`] : []))
      : [parameter],
  );
  const isFixed = (parameter: string) => !varied.includes(parameter);
  const loras = usedLoras.value.filter(({ lora }) => isFixed(`lora:${lora.id}`));
  const parts = [
    character?.name,
    ...of.styles,
    ...loras.map(({ lora, scale }) => `${lora.name} ${number(scale, 2, 2)}`),
    isFixed('size') && `${of.width} × ${of.height}`,
    isFixed('steps') && `${of.steps} ${t('form.steps').toLowerCase()}`,
    isFixed('cfg') && `CFG ${number(of.cfg, 2)}`,
    isFixed('scheduler') && (of.scheduler ?? avatar.value?.scheduler),
    isFixed('seed') && of.seedIsLocked && of.seed !== null
      ? `${t('form.seed').toLowerCase()} ${of.seed}`
      : null,
  ].filter(Boolean);
  return (
    <div class="settings-line">
      <div>
        {!withoutPrompt && isFixed('prompt') && (
          <p class="prompt-text" title={of.prompt}>
            {of.prompt || t('picture.noPrompt')}
          </p>
        )}
        <p class="muted small num">{parts.join(' · ')}</p>
      </div>
      <a class="button quiet" href="#/create">
        {t('form.change')}
      </a>
    </div>
  );
}
